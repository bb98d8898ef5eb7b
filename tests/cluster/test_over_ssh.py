"""A cluster of three machines over SSH; see over_ssh.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.cluster.over_ssh import ADDRESSES, DISK, missing
from tests.conftest import ROOT

# What `ray up` and `ray submit` write at the laptop, at the head and at the workers.
TRACES = ("~/.ssh", "~/.ray", "~/.bashrc", "~/lethe", "~/__main__.py", "~/ray_bootstrap_config.yaml")


def traces() -> dict[str, int | None]:
    """When each was changed; None where it is not there."""
    paths = [Path(name).expanduser() for name in TRACES] + [DISK / "keys"]
    return {str(path): path.stat().st_mtime_ns if path.exists() else None for path in paths}


def processes() -> list[str]:
    """Command lines with an address of the test's machines."""
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if ADDRESSES["head"] in line]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_up_submit_and_down_over_ssh() -> None:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    before = traces()
    command = [sys.executable, "-m", "tests.cluster.over_ssh"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["status"]["done"], found["status"]["failed"]) == (3, {}), found
    assert found["computed_on"] == ["worker"]
    assert traces() == before
    assert processes() == []
