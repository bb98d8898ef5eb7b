"""`lethe doctor`: each check against real folders, files and disks; broken GPUs and clocks are made up."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from orchestrator import doctor, doctor_folders, doctor_machine
from orchestrator.cli import app
from orchestrator.doctor import Check
from orchestrator.store import Store


def by_name(found: Iterator[Check]) -> dict[str, Check]:
    return {check.name: check for check in found}


def test_it_checks_this_machine_and_prints_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 0
    found = {check["name"]: check for check in json.loads(done.stdout.splitlines()[-1])}
    assert {"python", "torch", "ray", "constraints", "device", "threads", "shm", "token"} <= found.keys()
    assert {"results", "results-write", "clock", "results-disk", "data-write", "digits"} <= found.keys()
    assert {check["state"] for check in found.values()} <= {"ok", "warn"}
    assert "1437 + 360 samples" in found["digits"]["text"]
    assert "lethe prepare cifar10" in found["cifar10"]["text"]
    assert os.listdir(tmp_path) == []  # what was written is gone


def test_a_fault_is_a_line_that_says_what_to_do_and_exit_code_1(weird_tmp_path: Path) -> None:
    (weird_tmp_path / "file").write_text("no folder")
    done = CliRunner().invoke(app, ["doctor", "--results", str(weird_tmp_path / "file" / "below")])
    assert done.exit_code == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert "results-write" in line and "file is a file, not a folder" in line and "another --results" in line


# ---- packages --------------------------------------------------------------------------------------------


def test_packages_of_other_versions_are_named(tmp_path: Path) -> None:
    file = tmp_path / "constraints.txt"
    version = doctor.metadata.version("rich")
    file.write_text(f"# tested\nrich=={version}\nnumpy==1.0.0\nnot-installed==3\nray==2.0.0\n")
    pins = doctor.pinned(file)
    assert pins == {"rich": version, "numpy": "1.0.0", "not-installed": "3", "ray": "2.0.0"}
    found = doctor.constraints(pins)
    assert found.state == "warn" and found.text.startswith("2 of 3 differ: numpy ")
    assert "(tested: 1.0.0)" in found.text and "pip install -c constraints.txt" in found.text
    assert doctor.constraints({"rich": version}).state == "ok"
    assert doctor.constraints(doctor.pinned(tmp_path / "none")).state == "ok"
    ray = doctor.package("ray", pins)
    assert ray.state == "warn" and "tested with 2.0.0" in ray.text
    gone = doctor.package("no_such_package", {})
    assert gone.state == "FAIL" and "cannot be imported" in gone.text


# ---- folders ---------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB without room for another byte."""
    folder = tmp_path / "full"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)])
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with pytest.raises(OSError), (folder / "filler").open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told(full_disk: Path) -> None:
    found = by_name(doctor_folders.results(str(full_disk / "results")))
    assert found.keys() == {"results-write"} and found["results-write"].state == "FAIL"
    assert "No space left" in found["results-write"].text
    assert os.listdir(full_disk) == ["filler"]
    (full_disk / "filler").write_bytes(b"")
    found = by_name(doctor_folders.results(str(full_disk / "results")))
    assert found["results-write"].state == "ok" and found["results-disk"].state == "warn"
    assert found["results-disk"].text.startswith("0.0 GB free") and "5 GB" in found["results-disk"].text


@pytest.mark.parametrize(("wrong_by", "words"), [(75.0, "75 s ahead of"), (-3700.0, "3700 s behind")])
def test_a_clock_that_is_wrong_is_told(tmp_path: Path, wrong_by: float, words: str) -> None:
    found = by_name(doctor_folders.results(str(tmp_path), lambda: time.time() + wrong_by))
    assert found["clock"].state == "FAIL"
    assert words in found["clock"].text and "timedatectl" in found["clock"].text
    near = by_name(doctor_folders.results(str(tmp_path), lambda: time.time() + wrong_by / 100))
    assert near["clock"].state == "ok"


def test_results_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    store = Store.create(str(tmp_path / "results"))
    rows = [{"task_id": name, "attempt": 1, "status": "done", "kind": "base"} for name in "abc"]
    store.write_part("runs", rows, "p")
    assert doctor._results(store.uri) == Check("results", "ok", f"{store.uri}: 3 tasks recorded")
    (tmp_path / "results" / "lethe.json").write_text("broken")
    found = doctor._results(store.uri)
    assert found.state == "FAIL" and "not readable" in found.text


def test_runs_do_without_writing_into_data(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (found,) = doctor_folders.data(str(tmp_path / "file" / "data"))
    assert (found.name, found.state) == ("data-write", "warn") and "lethe prepare" in found.text
    assert {check.state for check in doctor_folders.data(str(tmp_path / "new" / "data"))} == {"ok"}
    assert os.listdir(tmp_path) == ["file"]


# ---- the machine -----------------------------------------------------------------------------------------


def test_a_gpu_that_cuda_cannot_use_is_told_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nMore lines")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", fails)
    (tmp_path / "nvidiactl").touch()
    assert doctor_machine.device(tmp_path).text == "no GPU; runs on the CPU"
    for number in range(2):
        (tmp_path / f"nvidia{number}").touch()
    found = doctor_machine.device(tmp_path)
    assert found.state == "FAIL" and found.text.startswith("2 GPU in ")
    assert "too old (found version 11040)" in found.text and "nvidia-smi" in found.text
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert doctor_machine.device(tmp_path).state == "ok"


def test_threads_and_shared_memory() -> None:
    assert doctor_machine.threads({}).state == doctor_machine.threads({"OMP_NUM_THREADS": "1"}).state == "ok"
    many = doctor_machine.threads({"OMP_NUM_THREADS": "16"})
    assert many.state == "warn" and "export OMP_NUM_THREADS=1" in many.text
    shm = Path("/dev/shm")
    assert doctor_machine.shared_memory(shm, 1e6).state == "ok"
    assert doctor_machine.shared_memory(shm / "no such folder", 1e12).state == "ok"


def test_too_little_shared_memory_is_told(full_disk: Path) -> None:
    found = doctor_machine.shared_memory(full_disk, 8e9)
    assert found.state == "warn" and "Ray wants 2.4 GB" in found.text and "--shm-size=2g" in found.text


# ---- the token -------------------------------------------------------------------------------------------


def test_the_token_is_asked_for_only_where_it_matters(tmp_path: Path) -> None:
    alone = {"RAY_TMPDIR": str(tmp_path)}
    assert doctor_machine.token(alone, tmp_path).text.endswith("none needed")
    assert doctor_machine.token(alone | {"RAY_AUTH_MODE": "disabled"}, tmp_path).state == "ok"
    near = doctor_machine.token(alone | {"RAY_ADDRESS": "10.0.0.1:6379"}, tmp_path)
    assert near.state == "warn" and "RAY_ADDRESS=10.0.0.1:6379" in near.text
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:6379")
    assert "ray_current_cluster" in doctor_machine.token(alone, tmp_path).text


def test_a_token_is_looked_for_where_ray_does(tmp_path: Path) -> None:
    wanted, file = {"RAY_AUTH_MODE": "token"}, tmp_path / ".ray" / "auth_token"
    missing = doctor_machine.token(wanted, tmp_path)
    assert missing.state == "FAIL" and str(file) in missing.text and "get-auth-token" in missing.text
    file.parent.mkdir()
    file.write_text(" \n")
    assert doctor_machine.token(wanted, tmp_path).text.count("is empty") == 1
    file.write_text("secret")
    found = doctor_machine.token(wanted, tmp_path)
    assert found.state == "ok" and str(file) in found.text and "secret" not in found.text
    folder = doctor_machine.token(wanted | {"RAY_AUTH_TOKEN_PATH": str(tmp_path)}, tmp_path)
    assert folder.state == "FAIL" and "cannot be read" in folder.text
    assert "RAY_AUTH_TOKEN" in doctor_machine.token(wanted | {"RAY_AUTH_TOKEN": "x"}, tmp_path / "none").text
