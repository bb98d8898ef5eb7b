"""The part of the contract that is about data: which sets are read, of what sizes, and at what cost."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from methods.base import Batch, Method
from tests.contract.checks import TOLERANCE, apply, assert_identical, distance, short
from tests.contract.toy import CPU, SETS, Toy, data_for
from workers.data import UnlearnData
from workers.run_task import generator, unlearn


def check_needs(cls: type[Method], toy: Toy) -> None:
    """It reads every set in `needs`: without the permission for any one it fails. It reads no other."""
    apply(short(cls), toy)
    for name in cls.needs:
        rest = tuple(other for other in cls.needs if other != name)
        try:
            unlearn(short(cls), toy.base, data_for(toy, rest))
        except PermissionError:
            continue
        raise AssertionError(f"{name} is in needs but is not read")


class Perturbed(UnlearnData):
    """The toy's data with the images of one set mirrored and its labels moved on, however they are read."""

    def __init__(self, toy: Toy, needs: tuple[str, ...], which: str) -> None:
        super().__init__(toy.dataset, SETS, needs, generator(1, CPU), augment=True)
        self.which = which

    def _pairs(self, name: str, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        batches = super()._pairs(name, batch_size, limit)
        return (self._change(*batch) if name == self.which else batch for batch in batches)

    def union(self, batch_size: int) -> Iterator[Batch]:
        for images, labels, forgotten in super().union(batch_size):
            changed_images, changed_labels = self._change(images, labels)
            mask = forgotten if self.which == "forget" else ~forgotten & (self.which == "retain")
            images = torch.where(mask[:, None, None, None], changed_images, images)
            yield images, torch.where(mask, changed_labels, labels), forgotten

    def _change(self, images: Tensor, labels: Tensor) -> Batch:
        return images.flip(-1), (labels + 1) % self.num_classes


def check_influence(cls: type[Method], toy: Toy) -> None:
    """The batches of each set alone, all else the same, matter if and only if the set is in `needs`."""
    plain = apply(short(cls), toy)
    for name in ("retain", "forget", "val"):
        changed = apply(short(cls), toy, data=Perturbed(toy, cls.needs, name))
        if name in cls.needs:
            assert distance(plain, changed) > 10 * TOLERANCE, f"the {name} set is read but does not matter"
        else:
            assert_identical(plain, changed, f"{name} is not in needs")


SIZES = {  # with batches of 32: retain and forget
    "one batch": (20, 10),
    "uneven last batch": (40, 37),
    "last batch of one": (65, 33),
    "one forgotten sample": (65, 1),
    "more forgotten than retained": (33, 70),
}


def check_sizes(cls: type[Method], toy: Toy) -> None:
    """Any sizes of the sets will do, and change the weights; no batch is of one sample.

    In eval mode samples do not mix, so that gradients of each sample by itself may be taken.
    """
    for name, (retain, forget) in SIZES.items():
        sets = {"retain": SETS["retain"][:retain], "forget": SETS["forget"][:forget], "val": SETS["val"][:33]}
        data = data_for(toy, cls.needs, sets=sets)
        batch_sizes: list[int] = []
        watched = copy.deepcopy(toy.base)
        next(watched.children()).register_forward_pre_hook(
            lambda net, inputs, seen=batch_sizes: seen.append(len(inputs[0]) if net.training else 2)
        )
        model = apply(short(cls), replace(toy, base=watched), data=data)
        assert batch_sizes and distance(model, toy.base) > TOLERANCE, f"{name}: nothing happened"
        assert min(batch_sizes) > 1, f"{name}: a batch of one"
        assert max(batch_sizes) <= 2 * 33, f"{name}: larger batches than asked for"


class Waits(TorchDispatchMode):
    """Counts operations that make the host wait for the device, but not those of optimizers' own counters."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(
            t is not None and t.dtype == torch.bool for t in args[1]
        )
        if (
            name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal") or by_mask
        ) and not in_optimizer():
            self.count += 1
        return func(*args, **(kwargs or {}))


def in_optimizer() -> bool:
    frame = sys._getframe(1)
    while frame is not None:
        if "/torch/optim/" in frame.f_code.co_filename:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def check_no_wait_per_step(cls: type[Method], toy: Toy) -> None:
    """The host waits as often with many batches as with few."""
    counts = []
    for part in (1, 3):
        sets = {name: index[: len(index) // part] for name, index in SETS.items()}
        with Waits() as waits:
            apply(short(cls), toy, data=data_for(toy, cls.needs, sets=sets))
        counts.append(waits.count)
    assert counts[0] == counts[1], f"the host waits {counts[0]} times, with a third of the data {counts[1]}"
