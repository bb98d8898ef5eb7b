"""The example of CONTRIBUTING.md, in a folder of its own, passes the contract, and a broken variant fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from orchestrator.catalogue import ROOT

KAPPA, IGNORED = "weight.mul_(1 - self.kappa)", "weight.mul_(0.7)"


def example() -> tuple[str, str]:
    """The method and its test, as CONTRIBUTING.md shows them."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Test a private method")[2].partition("\n## ")[0]
    method, test = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    return method, test


def test_the_example_passes_and_a_broken_variant_fails(tmp_path: Path) -> None:
    method, test = example()
    assert KAPPA in method
    broken = method.replace("my_method", "broken").replace("MyMethod", "Broken").replace(KAPPA, IGNORED)
    files = {
        "my_method.py": method,
        "test_my_method.py": test,
        "broken.py": broken,
        "test_broken.py": test.replace("my_method", "broken").replace("MyMethod", "Broken"),
    }
    for name, source in files.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    outcomes = run(tmp_path, "(MyMethod and not vit) or matters or declared")  # the transformer costs 6 s
    mine = {name: ended for (cls, name), ended in outcomes.items() if cls == "test_my_method.TestMyMethod"}
    assert len(mine) > 15 and set(mine.values()) == {"passed"}, mine
    others = {name: ended for (cls, name), ended in outcomes.items() if cls == "test_broken.TestBroken"}
    assert {name.partition("[")[2]: ended for name, ended in others.items()} == {
        "declared]": "passed",
        "every_hyperparameter_matters]": "kappa does nothing",
    }


def run(folder: Path, chosen: str) -> dict[tuple[str, str], str]:
    """How each test ended, by class and name: 'passed' or the message of its assertion."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", chosen, "--junit-xml=results.xml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    outcomes = {}
    for case in ElementTree.parse(folder / "results.xml").iter("testcase"):
        failure = case.find("failure")
        message = "passed" if failure is None else failure.attrib["message"].splitlines()[0]
        outcomes[case.attrib["classname"], case.attrib["name"]] = message.removeprefix("AssertionError: ")
    return outcomes
