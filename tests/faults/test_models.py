"""A model file that is damaged, gone or another model's is refused by its hash and made again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from orchestrator.models import weights_sha256
from orchestrator.runner import Options, run_grid
from tests.conftest import all_rows
from tests.faults.conftest import Begun
from workers.run_task import Base, pack_base, weights_hash


@pytest.mark.parametrize("codes", [None, torch.ones(3, 2)])
def test_the_hash_is_the_one_that_workers_record(codes: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    model.register_buffer("flags", torch.tensor([True, False]))
    model.register_buffer("scalar", torch.tensor(3))
    content = pack_base(Base(model, "members", "", 1.0, codes, "id"))
    whole = weights_hash(model, codes)
    assert weights_sha256(content) == whole
    changed = bytearray(content)
    changed[-1] ^= 1
    assert weights_sha256(bytes(changed)) not in (None, whole)
    for damaged in (content[:-1], content + b"x", content[:20], b"", b"text", bytes(len(content))):
        assert weights_sha256(damaged) is None


def truncated(good: Path, other: Path) -> None:
    good.write_bytes(good.read_bytes()[:-7])


def flipped(good: Path, other: Path) -> None:
    content = bytearray(good.read_bytes())
    content[-100] ^= 0x40
    good.write_bytes(bytes(content))


def swapped(good: Path, other: Path) -> None:
    good.write_bytes(other.read_bytes())


def emptied(good: Path, other: Path) -> None:
    good.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncated, flipped, swapped, emptied])
def test_a_damaged_model_is_made_again(
    damage: Callable[[Path, Path], None], begun: Begun, tmp_path: Path
) -> None:
    results = begun.copy(tmp_path / "results")
    bases = [task.id for task in begun.plan.tasks if task.kind == "base"]
    other, good = (results / "models" / f"{base}.safetensors" for base in bases)
    damage(good, other)
    assert begun.run(results).ran == 2  # the base once more, and what starts from it
    begun.assert_whole(results, again=1)
    assert Counter(row["task_id"] for row in all_rows(results))[bases[1]] == 2
    weights = {row["task_id"]: row["weights_sha256"] for row in all_rows(results)}
    assert all(weights[task.id] == weights[task.base] for task in begun.plan.tasks if task.base is not None)


@pytest.mark.long
def test_a_damaged_model_is_made_again_on_ray(begun: Begun, tmp_path: Path) -> None:
    results = begun.copy(tmp_path / "results")
    bases = [task.id for task in begun.plan.tasks if task.kind == "base"]
    other, good = (results / "models" / f"{base}.safetensors" for base in bases)
    swapped(good, other)
    options = Options(str(results), str(tmp_path / "data"), "local", max_actors=1, keep_models=True)
    ended = run_grid(begun.plan.grid, options)
    assert ended.failures == [] and ended.ran == 2
    begun.assert_whole(results, again=1)
