"""This machine: GPUs, cores and threads, the shared memory that Ray wants, and the token of a Ray cluster."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestrator.doctor import Check, first_line

GPU_NODES = "nvidia[0-9]*"
RAY_SHARE = 0.3  # of memory, that Ray gives to objects shared by workers, and keeps in /dev/shm
MOST_SHARED = 10e9  # bytes; above, Ray makes do with what /dev/shm has
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


def checks() -> Iterator[Check]:
    yield device()
    yield Check("cores", "ok", f"{os.cpu_count()}")
    yield threads(os.environ)
    yield shared_memory(Path("/dev/shm"), _memory())
    yield token(os.environ, Path.home())


def device(nodes: Path = Path("/dev")) -> Check:
    """The GPUs, each tried with a small sum; FAIL if there are some that CUDA cannot use."""
    import torch

    present, hidden = sorted(nodes.glob(GPU_NODES)), os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden in ("", "-1"):
        return Check("device", "ok", f"CUDA_VISIBLE_DEVICES='{hidden}' hides every GPU; runs on the CPU")
    try:
        if not present and not torch.cuda.is_available():
            return Check("device", "ok", "no GPU; runs on the CPU")
        torch.cuda.init()  # type: ignore[no-untyped-call]  # says why it is not available
        names = [_tried(index) for index in range(torch.cuda.device_count())]
    except (RuntimeError, AssertionError) as error:
        text = f"{len(present)} GPU in {nodes}, and CUDA fails: {first_line(error)}. See whether `nvidia-smi`"
        fit = f"works and its driver is new enough for CUDA {torch.version.cuda} of torch {torch.__version__}"
        return Check("device", "FAIL", f"{text} {fit}.")
    return Check("device", "ok", ", ".join(names))


def _tried(index: int) -> str:
    import torch

    torch.ones(2, device=f"cuda:{index}").sum().item()
    free, whole = torch.cuda.mem_get_info(index)
    name = torch.cuda.get_device_name(index)
    return f"{name} ({free / 2**30:.0f} of {whole / 2**30:.0f} GiB free)"


def threads(environment: Mapping[str, str]) -> Check:
    """Workers take one thread on a CPU by themselves; a number in the environment goes before that."""
    name = "OMP_NUM_THREADS"
    value = environment.get(name)
    if value is None or value == "1":
        return Check("threads", "ok", f"{name} is {value or 'not set'}: one for each worker on a CPU")
    text = f"{name}={value}: every actor on this machine takes so many. `export {name}=1` where actors share"
    return Check("threads", "warn", f"{text} the cores.")


def shared_memory(folder: Path, memory: float) -> Check:
    """Whether Ray's shared memory fits into /dev/shm; else it lies on a disk. memory: of this machine, bytes.

    Ray's rule: ray._private.utils.resolve_object_store_memory and services.determine_plasma_store_config.
    """
    if not folder.is_dir():
        return Check("shm", "ok", f"no {folder}: Ray keeps shared objects in files")
    free, wanted = shutil.disk_usage(folder).free, min(RAY_SHARE * memory, MOST_SHARED)
    text = f"{free / 1e9:,.1f} GB free in {folder}"
    if free >= wanted:
        return Check("shm", "ok", text)
    least = f"`docker run --shm-size={wanted / 1e9:.0f}g`, or `mount -o remount,size=…`"
    return Check("shm", "warn", f"{text}; Ray wants {wanted / 1e9:,.1f} GB, else it uses a disk: {least}.")


def _memory() -> float:
    whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = MEMORY_LIMIT.read_text().strip() if MEMORY_LIMIT.is_file() else "max"
    return whole if limit == "max" else min(whole, float(limit))


# ---- the token of a cluster ------------------------------------------------------------------------------


def token(environment: Mapping[str, str], home: Path) -> Check:
    """The token that a Ray cluster asks for, looked up as Ray does; `--address local` needs none."""
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    near = _cluster(environment)
    if mode != "token" and (mode or not near):
        return Check(
            "token", "ok", f"RAY_AUTH_MODE is {mode or 'not set'} and no cluster is near: none needed"
        )
    why = "RAY_AUTH_MODE=token" if mode == "token" else f"a cluster is near ({near})"
    if environment.get("RAY_AUTH_TOKEN"):
        return Check("token", "ok", f"{why}; in RAY_AUTH_TOKEN")
    file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token").expanduser()
    try:
        if file.read_text().strip():
            return Check("token", "ok", f"{why}; in {file}")
        problem = f"{file} is empty"
    except (OSError, UnicodeDecodeError) as error:
        problem = f"{file} cannot be read ({first_line(error)})"
    state = "FAIL" if mode == "token" else "warn"
    do = "Copy it from the head node, or `ray get-auth-token --generate` for a new cluster"
    return Check("token", state, f"{why}, and {problem}. {do}; RAY_AUTH_TOKEN_PATH names another file.")


def _cluster(environment: Mapping[str, str]) -> str:
    """Why --address auto would find a cluster; '' if it would not."""
    if address := environment.get("RAY_ADDRESS"):
        return f"RAY_ADDRESS={address}"
    noted = Path(environment.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    return str(noted) if noted.is_file() else ""
