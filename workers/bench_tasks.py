"""Whole tasks for `bench_train`: a base, a retrain and every method, run by a real worker and timed.

Training images are those that batches deliver to training: every view counts what it hands out, so partial
passes, repeated batches and sets read for a mask are in the count. Images of evaluation are not. Codes of
mnemonic methods are no images.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import methods
from methods.base import plugin
from workers import bench_reference as reference
from workers.bench_machine import Region
from workers.data import Arrays, DeviceDataset, View, batch_bounds
from workers.views import views_of

VAL_FRACTION, FORGET_FRACTION, FORGET_CLASS = 0.15, 0.1, 0
RATE_WHERE_DIVERGED = 1e-6
ONCE_ABOVE_S = 20.0  # a method that takes longer is not repeated
Tell = Callable[[str], None]


# ---- data ------------------------------------------------------------------------------------------------


class Synthetic:
    """Random pixels and labels in the shape of a data set's images, cropped and mirrored as it says."""

    def __init__(self, like: Any, channels: int, size: int, pool: int, test: int) -> None:
        self.name, self.num_classes = f"{like.name}_shape", like.num_classes
        self.mean, self.std = like.mean, like.std
        self.augment_pad, self.augment_flip = like.augment_pad, like.augment_flip
        self.pool_size, self.test_size, self._shape = pool, test, (channels, size, size)
        self.training = like.training

    def load(self, folder: Path) -> Arrays:
        """The arrays, always the same; `folder` is not needed."""
        rng = np.random.default_rng(0)

        def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
            images = rng.integers(0, 256, (count, *self._shape), dtype=np.uint8)
            return images, rng.permutation(np.arange(count) % self.num_classes)

        return Arrays(*draw(self.pool_size), *draw(self.test_size))


def cifar(pool: int, test: int) -> Synthetic:
    """Random data of CIFAR-10's shape."""
    return Synthetic(plugin("workers.datasets", "cifar10"), 3, 32, pool, test)


def digits(pool: int | None = None, test: int | None = None) -> Any:
    """The digits; with a size given, or without scikit-learn, random data of their shape."""
    real = plugin("workers.datasets", "digits")
    if pool is None and importlib.util.find_spec("sklearn") is not None:
        return real()
    sizes = (real.pool_size if pool is None else pool, real.test_size if test is None else test)
    return Synthetic(real, 1, 8, *sizes)


# ---- counts -----------------------------------------------------------------------------------


@contextmanager
def delivered() -> Iterator[list[int]]:
    """Inside, the one number of the list grows by the samples of each batch that a view hands out."""
    count, plain = [0], View.batches

    def batches(self: View, *given: Any, **named: Any) -> Iterator[Any]:
        for batch in plain(self, *given, **named):
            count[0] += len(batch[1])
            yield batch

    View.batches = batches  # type: ignore[method-assign]
    try:
        yield count
    finally:
        View.batches = plain  # type: ignore[method-assign]


@contextmanager
def by_loader(plugin: Any, dataset: DeviceDataset) -> Iterator[None]:
    """Inside, views make batches as the reference does: through PIL and the processes of a loader that is
    started anew for every pass. Which samples a batch has does not change.
    """
    plain, images = View.batches, dataset.images.cpu().numpy()

    def batches(self: View, batch_size: int, limit: int | None = None) -> Iterator[Any]:
        shuffled = self.index.cpu()[torch.randperm(len(self.index))][:limit]
        bounds = batch_bounds(len(shuffled), max(batch_size, 2))
        pictures = reference.Pictures(plugin, images, dataset.host_labels, augment=self.augment)
        chosen = [shuffled[start:end].tolist() for start, end in bounds]
        for batch in reference.loader(pictures, dataset.device, batch_sampler=chosen):
            yield tuple(tensor.to(dataset.device) for tensor in batch)

    View.batches = batches  # type: ignore[method-assign]
    try:
        yield
    finally:
        View.batches = plain  # type: ignore[method-assign]


# ---- tasks -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Package:
    """A base, a retrain and every method on one dataset and architecture. dropped: repeats before the first
    that counts; epochs: of the base and the retrain; beside: whether to run each method once more as the
    reference would feed it.
    """

    dataset: Any
    architecture: str
    epochs: int
    batch_size: int
    repeats: int
    dropped: int = 0
    beside: bool = False

    def spec(self, kind: str, repeat: int, mnemonic: bool = False) -> dict[str, Any]:
        """The specification of a task as plans make it, less the versions, on which no result depends."""
        name = {"name": self.dataset.name}, {"name": self.architecture}
        members = {"track": "main", "val_fraction": VAL_FRACTION}
        random = {"name": "random", "parameters": {"fraction": FORGET_FRACTION}}
        by_class = {"name": "class", "parameters": {"classes": [FORGET_CLASS]}}
        spec: dict[str, Any] = {"kind": kind, "dataset": name[0], "architecture": name[1], "members": members}
        if kind != "base":
            spec["forget"] = by_class if mnemonic else random
        if kind == "unlearn":
            return spec | {"augment": True, "precision": "auto", "seeds": {"unlearn": repeat}}
        seeds = {"init": repeat, "order": repeat, "codes": repeat}
        return spec | {"training": self._training(mnemonic), "seeds": seeds}

    def _training(self, mnemonic: bool) -> dict[str, Any]:
        recipe = {"optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
        recipe |= {"schedule": "cosine", "epochs": self.epochs, "batch_size": self.batch_size}
        recipe |= {"augment": True, "precision": "auto", "version": 1}
        return recipe | ({"mnemonic": {"t_mix": 0.3, "version": 1}} if mnemonic else {})

    def unlearn(self, method: Any, base: str, repeat: int, **changed: Any) -> dict[str, Any]:
        """The specification of a method at its defaults, but for what is `changed`."""
        values = asdict(method()) | changed
        own = {"base": base, "method": {"name": method.name, "hyperparameters": values}}
        return self.spec("unlearn", repeat, method.training == "mnemonic") | own


def all_methods() -> list[Any]:
    """The classes in methods/, by name."""
    found = []
    for module in pkgutil.iter_modules(methods.__path__):
        with suppress(LookupError):  # a file of helpers
            found.append(plugin("methods", module.name))
    return found


def why_not(method: Any) -> str:
    """Why a method cannot be run in a package here; '' if it can."""
    if method.training not in ("plain", "mnemonic"):
        return f"needs a base of training {method.training!r}, which this benchmark cannot make"
    if method.training == "plain" and method.scope == "class":
        return "is made for whole classes, and the package forgets random samples"
    return ""


@dataclass(frozen=True)
class Ran:
    """A task that was run. entry: of `tasks` (bench_train); seconds: all that the worker did."""

    entry: dict[str, Any]
    outcome: Any
    seconds: float
    peak_memory_mib: float | None

    @property
    def what(self) -> tuple[str, str, str]:
        """Its kind, method and, of a base or retrain, training."""
        return self.entry["kind"], self.entry["method"], self.entry["training"]


class Runs:
    """Runs the tasks of a package on a worker and keeps what ran."""

    def __init__(self, worker: Any, package: Package, tell: Tell) -> None:
        self.worker, self.package, self.tell = worker, package, tell
        self.ran: list[Ran] = []
        self.reference: dict[str, Ran] = {}
        self.notes: dict[str, str] = {}
        self.left_out: dict[str, str] = {}

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """The entries of what counts."""
        return [ran.entry for ran in self.ran if ran.entry["repeat"] >= 0]

    def base_and_retrain(self, repeat: int, mnemonic: bool = False) -> str:
        """Train both; returns the id of the base."""
        names = {kind: f"{kind}-{repeat}{'-mnemonic' if mnemonic else ''}" for kind in ("base", "retrain")}
        for kind, name in names.items():
            ran = self._run(name, self.package.spec(kind, repeat, mnemonic), repeat)
            if ran.outcome.status != "done":
                raise RuntimeError(f"a {kind} did not finish: {ran.outcome.status}, {ran.outcome.reason}")
            self.ran.append(ran)
        return names["base"]

    def method(self, method: Any, base: str, repeat: int) -> None:
        """Run a method, unless it takes long and was run. One that diverges on random data is run again with
        tiny learning rates, on which its speed does not depend.
        """
        if method.name in self.left_out or self._slow(method):
            return
        name = f"{method.name}-{repeat}"
        ran = self._run(name, self.package.unlearn(method, base, repeat), repeat)
        if ran.outcome.status == "diverged":
            self.notes[method.name] = "diverged at its defaults; timed at learning rates of 1e-6"
            ran = self._run(name, self.package.unlearn(method, base, repeat, **self._changed(method)), repeat)
        if ran.outcome.status == "done":
            self.ran.append(ran)
        else:
            self.left_out[method.name] = f"{ran.outcome.status}: {ran.outcome.reason}"

    def fed_by_the_reference(self, method: Any, base: str) -> None:
        """Run a method once in float32 on batches made as the reference makes them, if it reads any."""
        if method.name in self.left_out or self._slow(method):
            return
        spec = self.package.unlearn(method, base, 0, **self._changed(method)) | {"precision": "float32"}
        with by_loader(self.package.dataset, self.worker.dataset(self.package.dataset.name)):
            ran = self._run(f"{method.name}-reference", spec, 0)
        if ran.outcome.status == "done" and ran.entry["training_images"]:
            self.reference[method.name] = ran

    def _changed(self, method: Any) -> dict[str, float]:
        """The learning rates of a method that diverges at its own."""
        names = [name for name in asdict(method()) if name.endswith("learning_rate")]
        return dict.fromkeys(names, RATE_WHERE_DIVERGED) if method.name in self.notes else {}

    def _slow(self, method: Any) -> bool:
        own = (task["wall_s"] for task in self.tasks if task["method"] == method.name)
        return any(seconds > ONCE_ABOVE_S for seconds in own)

    def _run(self, task_id: str, spec: dict[str, Any], repeat: int) -> Ran:
        self.worker.warm_up(spec)
        with delivered() as count, Region(self.worker.device) as region:
            outcome = self.worker.run({"id": task_id, "spec": spec})
        row, name = outcome.row, spec.get("method", {}).get("name", "")
        cuda = self.worker.device.type == "cuda"  # where a task starts the count of memory anew itself
        peak = row.get("peak_memory_mib") if cuda else region.peak_memory_mib
        dataset = self.worker.dataset(spec["dataset"]["name"])
        training = None if name else "mnemonic" if "mnemonic" in spec["training"] else "plain"
        entry = {"kind": spec["kind"], "method": name, "training": training, "dataset": dataset.name}
        entry |= {"architecture": spec["architecture"]["name"], "track": "main", "image": list(dataset.shape)}
        entry |= {"training_images": float(count[0]), "wall_s": row.get("wall_s")}
        evaluated = len(dataset) * len(views_of(dataset.flip))
        entry |= {"evaluate_s": row.get("evaluate_s"), "evaluated_images": evaluated, "repeat": repeat}
        self.tell(f"{spec['kind']} {name} {row.get('wall_s') or 0:.2f} s")
        return Ran(entry, outcome, region.seconds, peak)

    def found(self, kind: str, method: str = "") -> dict[str, Any]:
        """Medians over the repeats of a task, of bases and retrains those of plain training: images, seconds
        of training or unlearning, of evaluation, of all that the worker did; and the largest peak of memory.
        """
        same = (kind, method, None if method else "plain")
        own = [ran for ran in self.ran if ran.what == same and ran.entry["repeat"] >= 0]
        names = ("training_images", "wall_s", "evaluate_s")
        peaks = [ran.peak_memory_mib for ran in own if ran.peak_memory_mib is not None]
        return {name: median(ran.entry[name] for ran in own) for name in names} | {
            "seconds": median(ran.seconds for ran in own),
            "peak_memory_mib": max(peaks, default=None),
            "repeats": len(own),
        }


def run_package(worker: Any, package: Package, tell: Tell) -> Runs:
    """Run a package as often as it says, and after each the methods that need other bases."""
    plain = [m for m in all_methods() if not why_not(m) and m.training == "plain"]
    others = [m for m in all_methods() if not why_not(m) and m.training != "plain"]
    runs = Runs(worker, package, tell)
    for repeat in range(-package.dropped, package.repeats):
        base = runs.base_and_retrain(repeat)
        for method in plain:
            runs.method(method, base, repeat)
        if others:
            base = runs.base_and_retrain(repeat, mnemonic=True)
        for method in others:
            runs.method(method, base, repeat)
    for method in plain if package.beside else ():
        runs.fed_by_the_reference(method, f"base-{package.repeats - 1}")
    runs.left_out |= {method.name: why for method in all_methods() if (why := why_not(method))}
    return runs


def worker_for(device: torch.device, datasets: list[Any], engine: str = "eager") -> Any:
    """A worker whose datasets are these. ModuleNotFoundError without scipy or safetensors."""
    from workers.worker import Worker

    class Given(Worker):
        def _plugin(self, name: str) -> Any:
            return next(dataset for dataset in datasets if dataset.name == name)

    return Given("data", device.type, hot=2, engine=engine)
