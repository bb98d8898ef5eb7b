"""The part of the contract that is about data: which sets are read, of what sizes, and at what cost."""

from __future__ import annotations

import copy
import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from methods.base import Batch, Method
from orchestrator.catalogue import Parameter
from tests.contract.checks import (
    TOLERANCE,
    Case,
    apply,
    assert_identical,
    declared,
    distance,
    parameters,
    short,
    usual,
)
from tests.contract.toy import CPU, Toy, data_for
from workers.data import UnlearnData
from workers.run_task import generator, unlearn


def check_needs(cls: type[Method], toy: Toy, case: Case) -> None:
    """It reads every set in `needs`: without the permission for any one it fails. It reads no other."""
    apply(short(cls, case), toy)
    for name in cls.needs:
        rest = tuple(other for other in cls.needs if other != name)
        try:
            unlearn(short(cls, case), toy.base, data_for(toy, rest))
        except PermissionError:
            continue
        raise AssertionError(f"{name} is in needs but is not read")


class Perturbed(UnlearnData):
    """The toy's data with the images of some sets mirrored and the labels moved on, however they are read."""

    def __init__(self, toy: Toy, needs: tuple[str, ...], *which: str) -> None:
        rng = generator(1, CPU)
        super().__init__(toy.dataset, toy.sets, needs, rng, augment=True, codes=toy.codes)
        self.which = which

    def _pairs(self, name: str, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        batches = super()._pairs(name, batch_size, limit)
        return (self._change(*batch) if name in self.which else batch for batch in batches)

    def union(self, batch_size: int) -> Iterator[Batch]:
        for images, labels, forgotten in super().union(batch_size):
            changed_images, changed_labels = self._change(images, labels)
            mask = forgotten & ("forget" in self.which) | ~forgotten & ("retain" in self.which)
            images = torch.where(mask[:, None, None, None], changed_images, images)
            yield images, torch.where(mask, changed_labels, labels), forgotten

    def codes(self) -> Tensor:
        return super().codes().flip(-1) if "codes" in self.which else super().codes()

    def _change(self, images: Tensor, labels: Tensor) -> Batch:
        return images.flip(-1), (labels + 1) % self.num_classes


def check_influence(cls: type[Method], toy: Toy, case: Case) -> None:
    """The batches of each set alone, all else the same, matter if and only if the set is in `needs`."""
    plain = usual(short(cls, case), toy)
    for name in cls.needs:
        changed = apply(short(cls, case), toy, data=Perturbed(toy, cls.needs, name))
        assert distance(plain, changed) > 10 * TOLERANCE, f"the {name} set is read but does not matter"
    rest = {"retain", "forget", "val", "codes"}.difference(cls.needs)
    changed = apply(short(cls, case), toy, data=Perturbed(toy, cls.needs, *rest))
    assert_identical(plain, changed, f"{rest} are not in needs")


SIZES = {  # with batches of 32: retain and forget
    "one batch": (20, 10),
    "uneven last batch": (40, 37),
    "last batch of one": (65, 33),
    "one forgotten sample": (65, 1),
    "more forgotten than retained": (33, 70),
}


def part_of(toy: Toy, **counts: int) -> dict[str, np.ndarray]:
    """The first so many samples of each set."""
    return {name: toy.sets[name][:count] for name, count in counts.items()}


def check_sizes(cls: type[Method], toy: Toy, case: Case) -> None:
    """Any sizes of the sets will do, and change the weights; no batch is of one sample.

    In eval mode samples do not mix, so that gradients of each sample by itself may be taken.
    """
    for name, (retain, forget) in SIZES.items():
        sets = part_of(toy, retain=retain, forget=forget, val=33)
        data = data_for(toy, cls.needs, sets=sets)
        batch_sizes: list[int] = []
        watched = copy.deepcopy(toy.base)
        next(watched.children()).register_forward_pre_hook(
            lambda net, inputs, seen=batch_sizes: seen.append(len(inputs[0]) if net.training else 2)
        )
        model = apply(short(cls, case), replace(toy, base=watched), data=data)
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


def check_no_wait_per_step(cls: type[Method], toy: Toy, case: Case) -> None:
    """The host waits as often with many batches as with few."""
    counts = []
    for part in (1, 3):
        sets = {name: index[: len(index) // part] for name, index in toy.sets.items()}
        with Waits() as waits:
            apply(short(cls, case), toy, data=data_for(toy, cls.needs, sets=sets))
        counts.append(waits.count)
    assert counts[0] == counts[1], f"the host waits {counts[0]} times, with a third of the data {counts[1]}"


# ---- cost ----------------------------------------------------------------------------------------


class Counted(UnlearnData):
    """The toy's data, counting in `read` the samples of the batches that are drawn.

    `slack` has the size of a batch for each call that is left before its end: formulas know the number of
    batches such a call draws, not which of them are part batches.
    """

    def __init__(
        self, toy: Toy, needs: tuple[str, ...], sets: dict[str, np.ndarray], look: Callable[[], None]
    ) -> None:
        super().__init__(toy.dataset, sets, needs, generator(1, CPU), augment=True, codes=toy.codes)
        self.read, self.slack = dict.fromkeys(sets, 0), dict.fromkeys(sets, 0)
        self.look = look

    def _pairs(self, name: str, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        return self._counted(super()._pairs(name, batch_size, limit), name)

    def _counted(self, batches: Iterator[Batch], name: str) -> Iterator[Batch]:
        largest = 0
        for batch in batches:
            self.read[name] += len(batch[0])
            self.slack[name] += max(0, len(batch[0]) - largest)
            largest = max(largest, len(batch[0]))
            self.look()
            yield batch
        self.slack[name] -= largest

    def union(self, batch_size: int) -> Iterator[Batch]:
        for images, labels, forgotten in super().union(batch_size):
            gone = int(forgotten.sum())
            self.read["forget"] += gone
            self.read["retain"] += len(labels) - gone
            self.look()
            yield images, labels, forgotten


class Copies:
    """The largest number of further sets of weights that was alive when it looked.

    Counted are tensors in the shape of the largest weight (if no other weight has it) and vectors with an
    entry for every weight, in storages of their own; not the model's, gradients, and what optimizers hold.
    Only what came into being inside the `with` is seen.
    """

    def __init__(self, model: nn.Module) -> None:
        weights = list(model.parameters())
        shapes = Counter(weight.shape for weight in weights)
        unique = [weight for weight in weights if shapes[weight.shape] == 1]
        self.shapes = {max(unique, key=Tensor.numel).shape, (sum(map(Tensor.numel, weights)),)}
        self.weights = weights
        self.most = 0

    def __enter__(self) -> Copies:
        gc.freeze()
        return self

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()

    def look(self, *_: object) -> None:
        alive = gc.get_objects()
        tensors = [thing for thing in alive if issubclass(type(thing), Tensor)]
        leaves = self.weights + [tensor for tensor in tensors if tensor.is_leaf]
        known = self.weights + [leaf.grad for leaf in leaves if leaf.grad is not None]
        for optimizer in (thing for thing in alive if issubclass(type(thing), Optimizer)):
            known += [held for state in optimizer.state.values() for held in state.values()]
        found = {
            storage(tensor)
            for tensor in tensors
            if tuple(tensor.shape) in self.shapes and not is_functorch_wrapped_tensor(tensor)
        }
        self.most = max(self.most, len(found - {storage(held) for held in known if torch.is_tensor(held)}))


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def check_cost(cls: type[Method], toy: Toy, case: Case) -> None:
    """What is read and held is what `cost` says, at two points of hyper-parameters and of sizes."""
    first = short(cls, case)
    second = replace(first, **{p.name: another(p, getattr(first, p.name)) for p in parameters(cls).values()})
    few = part_of(toy, retain=90, forget=70, val=33)
    for method, sets in ((first, toy.sets), (second, few)):
        model = copy.deepcopy(toy.base).train()
        with Copies(model) as copies:
            model.register_forward_pre_hook(copies.look)
            data = Counted(toy, cls.needs, sets, copies.look)
            method.unlearn(model, data)
        said = declared(cls).cost(asdict(method) | {f"{name}_size": len(sets[name]) for name in sets})
        for name, index in sets.items():
            read, slack = data.read[name] / len(index), data.slack[name] / len(index)
            assert abs(read - said[name]) <= slack + 1e-9, (
                f"{name}: {read:.2f} passes are read, {said[name]:.2f} declared, of {method}"
            )
        assert copies.most == said["copies"], (
            f"copies: {copies.most} are held, {said['copies']:g} declared, of {method}"
        )


def another(p: Parameter, value: Any) -> Any:
    """Another value of a parameter that may decide how much is read or held."""
    if p.kind == "bool":
        return not value
    if p.name.endswith("batch_size"):
        return p.choices[1] if p.choices else value * 2
    return value + 1 if p.name.endswith("epochs") else value
