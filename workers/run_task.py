"""One task from its specification to a row and scores. The one place that turns exceptions into failure
kinds.
"""

from __future__ import annotations

import copy
import hashlib
import json
import resource
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from methods.base import AFTER_EPOCH, PRECISION, Diverged, Method, plugin
from workers import poison, requests
from workers.architectures import architecture
from workers.data import DeviceDataset, UnlearnData, View
from workers.engine import placed
from workers.evaluate import class_summary, evaluate, population, summary
from workers.mnemonic import MnemonicView, draw_codes
from workers.outcome import Outcome
from workers.pruning import EpochWatch, Pruned
from workers.task_design import Design
from workers.train import Recipe, train
from workers.views import mirrors

CODES = ".mnemonic_codes"


class TimeLimit(Exception):
    """The task ran longer than it may (raised into the task by a runner in the same process)."""


@dataclass
class Base:
    """A model that others start from, on the device, and the hash of the indices it was trained on, or, after
    a request, was left with.

    task_id: what made it, empty in files of earlier versions.
    """

    model: nn.Module
    members_sha256: str
    weights_sha256: str
    train_s: float
    codes: Tensor | None = None
    task_id: str = ""


class Bench(Protocol):
    """What a task needs of the worker it runs on."""

    device: torch.device

    def warm_up(self, spec: dict[str, Any]) -> None: ...
    def dataset(self, name: str) -> DeviceDataset: ...
    def base(self, task_id: str) -> Base: ...
    def keep(self, task_id: str, base: Base) -> None: ...


def run_task(task: dict[str, Any], bench: Bench) -> Outcome:
    """Run one task ({"id", "spec"}, with "lists" where its recipes name any); every way it can end is an
    Outcome.
    """
    started = time.time()
    try:
        bench.warm_up(task["spec"])
        outcome = (
            _unlearn_task(task, bench) if task["spec"]["kind"] == "unlearn" else _train_task(task, bench)
        )
    except Pruned as error:
        outcome = Outcome(task["id"], "skipped", str(error), row={"epoch_values": error.values})
    except Diverged as error:
        outcome = Outcome(task["id"], "diverged", str(error), traceback.format_exc())
    except TimeLimit as error:
        outcome = Outcome(task["id"], "timeout", str(error), traceback.format_exc())
    except (torch.OutOfMemoryError, MemoryError) as error:
        outcome = Outcome(task["id"], "oom", _first_line(error), traceback.format_exc())
    except Exception as error:  # a fault of the program or its data: recorded with its trace, never swallowed
        status = "oom" if "can't allocate memory" in str(error) else "bug"
        outcome = Outcome(
            task["id"], status, f"{type(error).__name__}: {_first_line(error)}", traceback.format_exc()
        )
    outcome.row |= {"started_at": started, "finished_at": time.time()}
    return outcome


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _train_task(task: dict[str, Any], bench: Bench) -> Outcome:
    """Train a base (on retain and forget) or a retrain (on retain alone) from new weights."""
    spec = task["spec"]
    dataset = bench.dataset(spec["dataset"]["name"])
    design = Design(dataset, spec, task.get("lists"))
    trained_on = design.members if spec["kind"] == "base" else design.retain
    recipe = Recipe(**spec["training"])
    with seeded(spec["seeds"]["init"], bench.device):
        model = placed(build(spec, dataset), bench.device)
        order = generator(spec["seeds"]["order"], bench.device)
        view: Any = View(design.seen, trained_on, order, augment=recipe.augment, flip=recipe.flip)
        codes = None
        if recipe.mnemonic is not None:
            lottery = generator(spec["seeds"]["codes"], bench.device)
            codes = draw_codes(dataset.num_classes, dataset.images.shape[1:], lottery)
            view = MnemonicView(view, codes, recipe.mnemonic["t_mix"], lottery)
        with Stopwatch(bench.device) as watch:
            train(model, view, recipe)
    outcome = _evaluated(task, model, design, watch, bench)
    outcome.row["members_sha256"] = index_hash(design.seen, trained_on)
    if spec["kind"] == "base":
        hashes = outcome.row["members_sha256"], weights_hash(model, codes)
        base = Base(model, *hashes, watch.seconds, codes, task["id"])
        outcome.weights = pack_base(base)
        outcome.row["weights_sha256"] = base.weights_sha256
        bench.keep(task["id"], base)
    return outcome


def _unlearn_task(task: dict[str, Any], bench: Bench) -> Outcome:
    """Apply a method to a private copy of its base, or of what the request before left."""
    spec = task["spec"]
    dataset = bench.dataset(spec["dataset"]["name"])
    design = Design(dataset, spec, task.get("lists"))
    base = bench.base(spec["base"])
    _check_start(base, spec["base"], index_hash(design.seen, design.members))
    method = plugin("methods", spec["method"]["name"])(**spec["method"]["hyperparameters"])
    sets = {"retain": design.retain, "forget": design.forget, "val": design.val}
    rng = generator(spec["seeds"]["unlearn"], bench.device)
    data = UnlearnData(
        design.seen,
        sets,
        method.needs,
        rng,
        augment=spec["augment"],
        codes=base.codes,
        flip=mirrors(spec, dataset.flip),
    )
    with seeded(spec["seeds"]["unlearn"], bench.device), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        judge = _judge(task, dataset, sets)
        model, watch = unlearn(method, base.model, data, spec["precision"], judge)
    outcome = _evaluated(task, model, design, watch, bench)
    outcome.row |= {
        "members_sha256": base.members_sha256,
        "weights_sha256": base.weights_sha256,
        "prepaid_s": base.train_s if method.training != "plain" else None,
        "warnings": "\n".join(dict.fromkeys(str(warning.message) for warning in told)),
    }
    if design.request is not None and not requests.is_last(design.request):
        _leave(outcome, model, base, index_hash(design.seen, design.retain), bench)
    return outcome


def _check_start(base: Base, named: str, members_sha256: str) -> None:
    """ValueError if a model is not the one a task is to start from."""
    if base.members_sha256 != members_sha256:
        raise ValueError(f"base {named} was trained on other samples than this design says")
    if base.task_id not in ("", named):
        raise ValueError(f"base {named} is asked for, and the model given was made by {base.task_id}")


def _leave(outcome: Outcome, model: nn.Module, base: Base, members_sha256: str, bench: Bench) -> None:
    """Hand on an unlearned model: the next request starts from it."""
    hashes = members_sha256, weights_hash(model, base.codes)
    left = Base(model, *hashes, base.train_s, base.codes, outcome.task_id)
    outcome.weights, outcome.row["left_sha256"] = pack_base(left), left.weights_sha256
    bench.keep(outcome.task_id, left)


def _judge(
    task: dict[str, Any], dataset: DeviceDataset, sets: dict[str, np.ndarray]
) -> Callable[[nn.Module], EpochWatch] | None:
    """What watches a trial of tuning after each epoch, where the driver says by what to judge it."""
    told = task.get("judge")
    if told is None:
        return None
    return lambda model: EpochWatch(model, dataset, sets, told["retrain"], told["limits"])


def unlearn(
    method: Method,
    base: nn.Module,
    data: Any,
    precision: str = "auto",
    judge: Callable[[nn.Module], EpochWatch] | None = None,
) -> tuple[nn.Module, Stopwatch]:
    """The model a method makes of a private copy of `base`, in eval mode, and the clock around the method
    alone; judge: makes what is called after each epoch, whose seconds do not count.
    """
    model = copy.deepcopy(base).train()
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    after = None if judge is None else judge(model)
    tokens = PRECISION.set(precision), AFTER_EPOCH.set(after)
    try:
        with Stopwatch(data.device) as watch:
            model = method.unlearn(model, data)
    finally:
        PRECISION.reset(tokens[0])
        AFTER_EPOCH.reset(tokens[1])
    if after is not None:
        watch.seconds -= after.seconds
        watch.epoch_values = after.values
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable[name])
    model.zero_grad(set_to_none=True)
    return model.eval(), watch


def _evaluated(
    task: dict[str, Any], model: nn.Module, design: Design, watch: Stopwatch, bench: Bench
) -> Outcome:
    outcome = Outcome(task["id"], "done", design=design.row())
    with Stopwatch(bench.device) as evaluation:
        spec = task["spec"]
        strong, columns = spec.get("views") == "strong", spec.get("columns", ())
        flip = mirrors(spec, design.dataset.flip)
        outcome.scores = evaluate(model, design.dataset, strong, columns, flip)
        memory = design.remembered(model)
    test_labels = design.dataset.host_labels[design.dataset.n_pool :]
    outcome.row = summary(outcome.scores, design.states) | {
        "wall_s": watch.seconds,
        "evaluate_s": evaluation.seconds,
        "epoch_values": watch.epoch_values or None,
        "peak_memory_mib": max(watch.peak_memory_mib, evaluation.peak_memory_mib),
        "design": design.id,
        "dataset_sha256": design.dataset.sha256,
    }
    outcome.row |= class_summary(outcome.scores, test_labels, design.forget_classes) | memory
    if design.request is not None:
        outcome.row["fa_new"] = float(outcome.scores.correct[design.forget].mean())
    if task["spec"]["members"]["track"] == "tune":  # judged by its row alone: scores of trials are not kept
        outcome.row |= population(outcome.scores, design.states)
        outcome.scores = None
    return outcome


class Stopwatch:
    """Wall seconds and peak memory of a block, with the device synchronised at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.peak_memory_mib = device, 0.0, 0.0
        self.epoch_values: list[float] = []

    def __enter__(self) -> Stopwatch:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak_memory_mib = torch.cuda.max_memory_allocated(self.device) / 2**20
        else:
            self.peak_memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.seconds = time.perf_counter() - self._start


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators at `seed` inside, as they were afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def generator(seed: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def build(spec: dict[str, Any], dataset: DeviceDataset) -> nn.Module:
    """The freshly initialised architecture of a task."""
    channels, size = dataset.shape
    return architecture(spec["architecture"]["name"]).build(dataset.num_classes, channels, size)


def index_hash(dataset: DeviceDataset | poison.Poisoned, index: np.ndarray) -> str:
    """Hash of the samples (pixels and labels, as trained on) at these indices, in order."""
    hashes = dataset.sample_sha256
    return hashlib.sha256(b"".join(hashes[i] for i in index)).hexdigest()


def weights_hash(model: nn.Module, codes: Tensor | None) -> str:
    """SHA-256 of all tensors of a model and its codes, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(model, codes).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def _tensors(model: nn.Module, codes: Tensor | None) -> dict[str, Tensor]:
    """What of a base is saved, on the host. A dot in front keeps the codes apart from all weights."""
    tensors = dict(model.state_dict()) | ({} if codes is None else {CODES: codes})
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def pack_base(base: Base) -> bytes:
    """A base as safetensors bytes; the hash of its training indices and its seconds travel with it."""
    facts = {"members_sha256": base.members_sha256, "train_s": repr(base.train_s), "task_id": base.task_id}
    return save(_tensors(base.model, base.codes), metadata=facts)


def unpack_base(data: bytes, model: nn.Module, device: torch.device) -> Base:
    """The inverse of `pack_base`; `model` is a fresh one of the same architecture."""
    tensors = load(data)
    codes = tensors.pop(CODES, None)
    model.load_state_dict(tensors)
    size = int.from_bytes(data[:8], "little")  # a JSON header stands behind its length
    facts = json.loads(data[8 : 8 + size])["__metadata__"]
    hashed = weights_hash(model, codes)
    codes = None if codes is None else codes.to(device)
    seconds, made_by = float(facts.get("train_s", "nan")), facts.get("task_id", "")
    return Base(placed(model, device).eval(), facts["members_sha256"], hashed, seconds, codes, made_by)
