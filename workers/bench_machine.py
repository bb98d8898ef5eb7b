"""This machine, for `bench_train`: seconds and memory of a block, names and versions."""

from __future__ import annotations

import platform
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from methods.base import precision

PACKAGES = ("torch", "torchvision", "numpy", "timm", "scikit-learn")


class Region:
    """Wall seconds of a block with the device synchronised at both ends, and its peak memory: of tensors on a
    GPU, else of this process (None where the system cannot start the count anew).
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.peak_memory_mib = device, 0.0, None

    def __enter__(self) -> Region:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._counts = _restart_peak()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self._start
        if self.device.type == "cuda":
            self.peak_memory_mib = torch.cuda.max_memory_allocated(self.device) / 2**20
        elif self._counts:
            self.peak_memory_mib = _peak_mib()


def _restart_peak() -> bool:
    """Start the count of this process's peak resident memory anew (Linux); whether that worked."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return _peak_mib() is not None
    return False


def _peak_mib() -> float | None:
    lines = Path("/proc/self/status").read_text().splitlines()
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) / 1024 if found else None


def trained_in(device: torch.device) -> str:
    """The precision of training at the setting 'auto'."""
    with precision(device):
        return "bfloat16" if torch.is_autocast_enabled(device.type) else "float32"


def name_of(device: torch.device) -> str:
    """As in the column `device` of results."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()})"


def versions() -> dict[str, str]:
    """Of Python and of the packages that are there."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found | ({"cuda": torch.version.cuda} if torch.cuda.is_available() else {})


def processor() -> str:
    """The name of the CPU, where Linux tells it."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return names[0] if names else platform.machine()
    return platform.machine()
