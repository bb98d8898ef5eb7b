"""What README.md tells a user to type works: its commands exist, its grid and method are valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from orchestrator import datasets
from orchestrator.config import Grid
from tests.conftest import ROOT, Lethe, grid_data

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_grid_is_valid_and_small_enough_to_plan(lethe: Lethe, tmp_path: Path) -> None:
    text, folder = blocks("yaml")
    Grid.model_validate(yaml.safe_load(text))
    [entry] = Grid.model_validate(grid_data(**yaml.safe_load(folder))).datasets
    assert f"results: {datasets.of(entry).name}\n" in folder
    path = tmp_path / "my.yaml"
    path.write_text(text)
    done = lethe("plan", path)
    assert done.returncode == 0, done.stderr
    assert "tasks in 1 cell" in done.stdout


def lethe_commands() -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return sorted({line.split()[1] for line in lines if line.startswith("lethe ")})


def test_the_commands_of_store_exist(lethe: Lethe) -> None:
    named = set(re.findall(r"lethe store (\w+)", README + (ROOT / "docs" / "storage.md").read_text("utf-8")))
    assert named == {"compact", "verify", "suffstats"}
    assert all(lethe("store", command, "--help").returncode == 0 for command in named)


@pytest.mark.parametrize("command", lethe_commands())
def test_each_command_exists(lethe: Lethe, command: str) -> None:
    assert lethe(command, "--help").returncode == 0


def test_options_named_in_prose_exist(lethe: Lethe) -> None:
    options = set(re.findall(r"--[a-z][a-z-]+", README)) - {"--working-dir"}  # that one is Ray's
    commands = ("run", "report", "plan", "list", "audit", "prepare", "status")
    known = "".join(lethe(command, "--help").stdout for command in commands)
    assert not {option for option in options if option not in known}


def test_the_table_of_methods_is_what_its_command_prints(lethe: Lethe) -> None:
    assert lethe("list", "methods", "--markdown").stdout in README


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_method_shown_is_a_method(tmp_path: Path) -> None:
    from orchestrator.catalogue import read

    [source] = blocks("python")
    path = tmp_path / "my_method.py"
    path.write_text(source)
    plugin = read(path)
    assert plugin is not None
    assert list(plugin.parameters) == ["epochs", "learning_rate"]
