"""The worker: a plain class that keeps datasets and hot base models on its device and runs one task after
another.

orchestrator/driver.py makes a Ray actor of it, orchestrator/inline.py uses it in its own process.
"""

from __future__ import annotations

import json
import platform
import socket
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from methods.base import fit, plugin, sgd
from workers import architectures, duplicates
from workers import engine as engines
from workers.data import Arrays, DeviceDataset, View
from workers.image_folder import ImageFolder
from workers.run_task import Base, Outcome, build, generator, run_task, seeded, unpack_base

WARM_UP_SAMPLES = 512
DUPLICATES_BATCH = 1024


class Worker:
    """Runs tasks on one device.

    data: folder of the datasets. device: 'auto' (a GPU if this process sees one), 'cpu' or 'cuda'. hot: how
    many base models stay on the device. folders: what image_folder.ImageFolder takes for each folder of
    pictures, by its name in task specifications. engine: how steps are taken, 'eager' or 'graphs'
    (workers/engine.py). On a CPU a worker uses one thread: several busy processes with two threads each were
    seen 10–100 times slower.
    """

    def __init__(
        self,
        data: str,
        device: str = "auto",
        hot: int = 4,
        folders: Mapping[str, Mapping[str, Any]] | None = None,
        engine: str = "eager",
    ) -> None:
        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.device = torch.device(name)
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        self._engine = engines.made(engine)
        self._folder, self._hot, self._folders = Path(data), hot, folders or {}
        self._datasets: dict[str, DeviceDataset] = {}
        self._arrays: dict[str, Arrays] = {}  # read or received, not on the device yet
        self._bases: OrderedDict[str, Base] = OrderedDict()
        self._warm: set[tuple[str, str]] = set()
        self._offered: tuple[str, bytes, dict[str, Any]] | None = None

    def run(self, task: dict[str, Any], weights: bytes | None = None) -> Outcome:
        """Run one task. `weights` are the safetensors bytes of its base; not needed where `holds` says so."""
        self._offered = None if weights is None else (task["spec"]["base"], weights, task["spec"])
        with engines.chosen(self._engine):
            outcome = run_task(task, self)
            # Recorded steps need memory of their own: without them the task is tried once more.
            if outcome.status == "oom" and self._engine is not None and self._engine.give_up():
                outcome = run_task(task, self)
        outcome.row |= self.facts(task["spec"]["architecture"]["name"])
        return outcome

    def facts(self, architecture: str) -> dict[str, str]:
        """The columns of `runs` that describe the machine and the packages a task used."""
        cuda = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if cuda else f"cpu ({platform.machine()})"
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        versions |= architectures.versions(architecture)
        return {"device": name, "host": socket.gethostname(), "versions": json.dumps(versions)}

    def holds(self) -> list[str]:
        """The bases that are on the device."""
        return list(self._bases)

    def memory_mib(self) -> float:
        """Memory of the device; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0.0
        return torch.cuda.get_device_properties(self.device).total_memory / 2**20

    def arrays(self, name: str) -> Arrays:
        """The bytes of a dataset, read from its files, for workers that have none."""
        if name not in self._arrays:
            self._arrays[name] = self._plugin(name).load(self._folder)
        return self._arrays[name]

    def receive(self, name: str, arrays: Arrays) -> None:
        """Take the bytes of a dataset from another worker, instead of reading files."""
        if name not in self._datasets:
            self._arrays.setdefault(name, arrays)

    def samples(self, name: str) -> dict[str, Any]:
        """Labels, subclasses, pool size and sample hashes of a dataset, for the table samples."""
        dataset = self.dataset(name)
        labels = {"labels": dataset.host_labels, "subclasses": dataset.host_subclasses}
        return {**labels, "n_pool": dataset.n_pool, "sha256": dataset.sample_sha256}

    def try_out(self, architecture: str, dataset: str) -> str:
        """Why an architecture cannot take a dataset's images, found with two of its shape; '' if it can."""
        of = self.dataset(dataset)
        try:
            with seeded(0, self.device):
                architectures.try_out(architecture, of.num_classes, *of.shape)
        except architectures.CannotBuild as error:
            return str(error)
        return ""

    def duplicates(self, name: str) -> dict[str, Any]:
        """The columns of samples that say which images are alike; mirrored ones where training mirrors."""
        dataset = self.dataset(name)
        batches = (part.cpu().numpy() for part in dataset.images.split(DUPLICATES_BATCH))
        found = duplicates.find(batches, mirrored=dataset.flip)
        return {"dup_exact": found.exact, "dup_near": found.near}

    # ---- what a task asks for (run_task.Bench) ------------------------------------------------------------

    def dataset(self, name: str) -> DeviceDataset:
        """The dataset on the device; loaded at the first call."""
        if name not in self._datasets:
            self._datasets[name] = DeviceDataset(self._plugin(name), self.arrays(name), self.device)
            del self._arrays[name]
        return self._datasets[name]

    def _plugin(self, name: str) -> Any:
        given = self._folders.get(name)
        if given is None and name.startswith("image_folder-"):
            raise LookupError(f"{name}: no folder was given to this worker for it")
        return plugin("workers.datasets", name)() if given is None else ImageFolder(**given)

    def warm_up(self, spec: dict[str, Any]) -> None:
        """Train and evaluate a throw-away model once per (dataset, architecture), so that no task is timed
        with the costs of starting.
        """
        key = (spec["dataset"]["name"], spec["architecture"]["name"])
        if key in self._warm:
            return
        self._warm.add(key)
        dataset = self.dataset(key[0])
        unheld = None if self._engine is None else engines.Graphs(held=0)
        with seeded(0, self.device), engines.chosen(unheld):
            model = engines.placed(build(spec, dataset), self.device)
            some = np.arange(min(WARM_UP_SAMPLES, dataset.n_pool))
            view = View(dataset, some, generator(0, self.device), augment=True)
            fit(
                sgd(model, 0.01, 0.9),
                lambda: view.batches(64),
                lambda images, labels, _: cross_entropy(model(images), labels),
                epochs=1,
                pure=True,
            )
            with torch.inference_mode():
                model.eval()(dataset.normalised(dataset.images[:WARM_UP_SAMPLES]))

    def base(self, task_id: str) -> Base:
        """The base model, from the device or from the weights that came with the task."""
        if task_id not in self._bases:
            if self._offered is None or self._offered[0] != task_id:
                raise LookupError(f"base {task_id} is not on this worker and no weights came with it")
            _, weights, spec = self._offered
            model = build(spec, self.dataset(spec["dataset"]["name"]))
            self.keep(task_id, unpack_base(weights, model, self.device))
        self._bases.move_to_end(task_id)
        return self._bases[task_id]

    def keep(self, task_id: str, base: Base) -> None:
        """Keep a base on the device, dropping the one used longest ago when there are too many."""
        self._bases[task_id] = base
        while len(self._bases) > self._hot:
            self._bases.popitem(last=False)
