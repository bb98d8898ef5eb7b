"""What is read from the sources equals what an import gives, and reading imports nothing heavy."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from methods.base import plugin
from orchestrator.catalogue import (
    FOLDERS,
    Parameter,
    declaration_problems,
    plugins,
    read,
    training_version,
)
from tests.conftest import Lethe

CLASSES = [(kind, name) for kind in FOLDERS if kind != "attacks" for name in plugins(kind)]


@pytest.mark.parametrize(("kind", "name"), CLASSES)
def test_reading_a_plugin_equals_importing_it(kind: str, name: str) -> None:
    cls, found = plugin(FOLDERS[kind].replace("/", "."), name), plugins(kind)[name]
    assert found.constants == {key: getattr(cls, key) for key in found.constants}
    assert {"name", "label", "paper", "version"} <= found.constants.keys()
    assert (found.name, found.label, found.paper, found.version) == (
        cls.name,
        cls.label,
        cls.paper,
        cls.version,
    )
    assert found.parameters == parameters_of(cls)
    assert found.summary == (sys.modules[cls.__module__].__doc__ or "").splitlines()[0]


def parameters_of(cls: Any) -> dict[str, Parameter]:
    """The hyper-parameters of an imported dataclass."""
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    return {
        f.name: Parameter(
            f.name, f.type if isinstance(f.type, str) else f.type.__name__, f.default, **f.metadata
        )
        for f in fields
    }


@pytest.mark.parametrize("name", plugins("attacks"))
def test_reading_an_attack_equals_importing_it(name: str) -> None:
    module, found = importlib.import_module(f"attacks.{name}"), plugins("attacks")[name]
    for key in ("name", "label", "paper", "version"):
        assert found.constants[key] == getattr(module, key)


def test_the_version_of_training_is_the_modules() -> None:
    from workers import mnemonic, train

    assert training_version("plain") == train.version
    assert training_version("mnemonic") == mnemonic.version


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_file_with_a_plugin_is_found_and_helpers_are_not(kind: str) -> None:
    names = list(plugins(kind))
    assert names == sorted(names) and names
    assert "base" not in names and "__init__" not in names


def test_reading_everything_imports_no_torch() -> None:
    code = (
        "import sys\nfrom orchestrator.catalogue import *\n"
        "assert all(plugins(kind) for kind in FOLDERS); training_version('plain')\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(tops & {'torch', 'ray', 'numpy', 'methods'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def source(name: str) -> str:
    return (
        f'"""What it does.\n\nMore."""\nclass Thing:\n    name = "{name}"\n    label = "T"\n    version = 3\n'
    )


def test_a_name_that_is_not_the_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "thing.py"
    path.write_text(source("other"))
    with pytest.raises(ValueError, match=r"thing\.py.*'other'.*'thing'"):
        read(path)
    path.write_text(source("thing"))
    found = read(path)
    assert found is not None and (found.name, found.version, found.summary) == ("thing", 3, "What it does.")


def test_parameters_are_read_with_ranges_scales_and_choices(tmp_path: Path) -> None:
    path = tmp_path / "thing.py"
    lines = ("rate: float = hp(1e-3, 1e-5, 1e-1, log=True)", "batch: int = hp(64, choices=(64, 128))")
    path.write_text(source("thing") + "".join(f"    {line}\n" for line in (*lines, "flag: bool = hp(True)")))
    found = read(path)
    assert found is not None and found.parameters == {
        "rate": Parameter("rate", "float", 1e-3, 1e-5, 1e-1, log=True),
        "batch": Parameter("batch", "int", 64, choices=(64, 128)),
        "flag": Parameter("flag", "bool", True),
    }


def test_a_file_without_a_name_is_a_helper(tmp_path: Path) -> None:
    path = tmp_path / "helper.py"
    path.write_text("version = 1\ndef f(): return 1\n")
    assert read(path) is None


# ---- declarations ----------------------------------------------------------------------------------------

METHOD = '''
"""A method."""


class Mine:
    name = "mine"
    version = 1
    needs = ("retain",)
    {extra}

    epochs: int = hp(5, 1, 37)
'''


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("", 'cost: missing, or not a literal. Write e.g. cost = {"retain": "epochs"}'),
        ('cost = {"retain": "epoch + 1"}', "retain: 'epoch + 1' is no formula of epochs, retain_size"),
        ('cost = {"retain": "1 / (epochs - 5)"}', "'1 / (epochs - 5)' is no formula"),
        ('cost = {"retain": "epochs if"}', "'epochs if' is no formula"),
        ('cost = {"retain": "-epochs"}', "'-epochs' is no formula"),
        ('cost = {"retain": "2 - epochs"}', "is -3.0 at the defaults"),
        ('cost = {"retains": "epochs"}', "cost: retains; allowed are retain, forget, val, copies."),
        ('cost = {}\n    scope = "clas"', "scope: 'clas' is not one of random, class, both."),
        ('cost = {}\n    training = "mnemonik"', "training: 'mnemonik' is not one of plain, mnemonic."),
    ],
)
def test_a_wrong_declaration_is_one_line(tmp_path: Path, extra: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(METHOD.replace("{extra}", extra), encoding="utf-8")
    plugin = read(path)
    assert plugin is not None
    (problem,) = declaration_problems("methods", plugin)
    assert message in problem


def test_a_plan_refuses_a_plug_in_that_does_not_declare_what_it_reads(
    lethe: Lethe, project_copy: Callable[..., Path], write_grid: Callable[..., Path]
) -> None:
    folder = project_copy(mine=METHOD.replace("{extra}", ""))
    recipes = folder / "workers" / "forget"
    recipe = (recipes / "random.py").read_text(encoding="utf-8").replace('name = "random"', 'name = "some"')
    (recipes / "some.py").write_text(recipe.replace("    share = ", "    no_share = "), encoding="utf-8")
    for name, problem in (
        ("forget/some.py", "workers/forget/some.py  share: missing"),
        ("methods/mine.py", "methods/mine.py  cost: missing"),
    ):
        done = lethe("plan", write_grid(), cwd=folder)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(problem)
        (folder / ("workers/" if name.startswith("forget") else "") / name).unlink()
    assert lethe("plan", write_grid(), cwd=folder).returncode == 0
