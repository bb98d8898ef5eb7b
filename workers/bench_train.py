"""How fast models are trained, evaluated and made to forget, beside the reference's loop on the same device.

    python -m workers.bench_train [--device auto|cpu|cuda] [--parts train,digits,cifar,places,reference]
                                  [--samples N] [--engine eager|graphs] [--quick] [--json]

`lethe bench train` is the same. This needs torch, torchvision and numpy; the parts digits and cifar also what
a worker imports, scipy and safetensors; tinyvit11m timm. What cannot be measured is named in `left_out`.

Parts. train: for each architecture one pass of training and one of evaluation, by the reference's loop and by
ours, in turn, after both were warmed up. digits, cifar: packages, that is a base, a retrain and every method
at its default hyper-parameters, run by a worker as in a grid; of the digits (those of scikit-learn if there)
with cnn_small, and of random data of CIFAR-10's shape with resnet18. places: a base of one epoch for each
architecture and image shape of the paper's grid, for `lethe plan --device`. reference: in the packages each
method once more in float32, on batches made as the reference makes them. Other data than the digits is
random, on which the speed does not depend. Figures are medians over `repeats`; a method that takes over 20 s
runs once. The last line printed is the JSON:

    device, processor, threads, loader_workers, versions
    flop_per_s      of large matrix products, the best size, in each precision: the arithmetic limit
    rows            one for each figure; what a row has no value for is null
    tasks           each timed task of the packages, and our passes of the part train as bases of one epoch,
                    for `lethe plan --device`
    left_out        what was not measured, and why

Keys of a row:

    what            train, evaluate (a pass over the data), unlearn (a method) or package
    device, architecture, dataset, method, precision, engine, models_at_once, batch_size
    images          that training saw, that were passed through the net, or that a method was given
    seconds         of one pass; of the method alone; of the package, all that a worker does included: the sum
                    of its tasks
    images_per_s    images / seconds
    reference_seconds, reference_images, reference_images_per_s    the same by the reference's loop
    ratio           images_per_s / reference_images_per_s
    flops_per_image of convolutions and matrix products, a multiply-add being two
    limit_images_per_s, limit_fraction    flop_per_s / flops_per_image, and images_per_s / that
    peak_memory_mib, reference_peak_memory_mib    on a GPU of tensors, else of this process, with all it holds
    evaluate_s      of all scores of one model, after its training or unlearning; of those of a package
    models, models_per_hour    in a package; of it, or of a method with its evaluation
    epochs          of the base and the retrain of a package
    recipe_seconds  estimate: the package's with the training epochs of the dataset's recipe, in proportion
    repeats, note

Keys of a task: kind (base, retrain, unlearn), method, training (of a base or retrain: plain or mnemonic),
dataset, architecture, track, image [channels, size], training_images (what batches delivered to training),
wall_s, evaluate_s, evaluated_images (pool and test, once for each view they are scored in), repeat.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from workers import architectures
from workers import bench_reference as reference
from workers.bench_loops import Loops
from workers.bench_machine import name_of, processor, trained_in, versions
from workers.bench_sizes import QUICK, SIZES, Sizes
from workers.bench_tasks import (
    Package,
    Runs,
    Tell,
    all_methods,
    cifar,
    digits,
    run_package,
    synthetic,
    worker_for,
)
from workers.engine import ENGINES
from workers.evaluate import BATCH

PARTS = ("train", "digits", "cifar", "places", "reference")
NUMBERS = (
    *("batch_size", "images", "seconds", "images_per_s", "reference_seconds", "reference_images"),
    *("reference_images_per_s", "ratio", "flops_per_image", "limit_images_per_s", "limit_fraction"),
    *("peak_memory_mib", "reference_peak_memory_mib", "evaluate_s", "models", "models_per_hour", "epochs"),
    *("recipe_seconds", "repeats", "note"),
)
KEYS = (
    *("what", "device", "architecture", "dataset", "method", "precision", "engine", "models_at_once"),
    *NUMBERS,
)
TASK_KEYS = (
    *("kind", "method", "training", "dataset", "architecture", "track", "image", "training_images", "wall_s"),
    *("evaluate_s", "evaluated_images", "repeat"),
)


class CannotMeasure(ValueError):
    """A benchmark that was asked for cannot be run: one line for the user."""


@dataclass
class Bench:
    """What is known while measuring: where, how much, how; and what was found so far."""

    device: torch.device
    sizes: Sizes
    engine: str
    tell: Tell
    rates: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)

    def row(self, what: str, architecture: str, dataset: str, **found: Any) -> dict[str, Any]:
        """A row; what is not found is None."""
        row: dict[str, Any] = dict.fromkeys(KEYS) | {"models_at_once": 1, "engine": self.engine, "method": ""}
        row |= {"what": what, "device": name_of(self.device), "architecture": architecture}
        row |= {"dataset": dataset, "precision": trained_in(self.device)} | found
        if row["images_per_s"] is None and row["images"]:
            row["images_per_s"] = row["images"] / row["seconds"]
        if row["reference_seconds"]:
            row["reference_images_per_s"] = row["reference_images"] / row["reference_seconds"]
            row["ratio"] = row["images_per_s"] / row["reference_images_per_s"]
        if row["flops_per_image"]:
            row["limit_images_per_s"] = self.rate(row["precision"]) / row["flops_per_image"]
            row["limit_fraction"] = row["images_per_s"] / row["limit_images_per_s"]
        return row

    def rate(self, precision: str) -> float:
        """FLOP/s of this device."""
        if precision not in self.rates:
            self.rates[precision] = reference.rate(self.device, precision, self.sizes.matrices)
        return self.rates[precision]


def measure(
    device: str = "auto",
    sizes: Sizes | None = None,
    parts: tuple[str, ...] = PARTS,
    engine: str = "eager",
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """Measure; the result has the keys explained above. Raises CannotMeasure. On a CPU one thread is used.

    tell: is called with a line after each figure.
    """
    where = _device(device)
    _check(parts, engine)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if where.type == "cpu" else threads)
    try:
        bench = Bench(where, sizes or SIZES[where.type], engine, tell)
        for name in {trained_in(where), "float32"}:  # while the machine is as it was found
            bench.rate(name)
        if "train" in parts:
            _train_part(bench)
        if "digits" in parts:
            _digits_part(bench, "reference" in parts)
        if "cifar" in parts:
            _cifar_part(bench, "reference" in parts)
        if "places" in parts:
            _places_part(bench)
        found = {"device": name_of(where), "processor": processor(), "threads": torch.get_num_threads()}
    finally:
        torch.set_num_threads(threads)
    found |= {"loader_workers": reference.loader_workers(), "versions": versions()}
    found |= {"flop_per_s": bench.rates, "rows": bench.rows, "tasks": bench.tasks, "left_out": bench.left_out}
    return found


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise CannotMeasure(f"bench --device {name}: unknown. Allowed: auto, cpu, cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise CannotMeasure(f"bench --device cuda: torch {torch.__version__} sees no card. Here: cpu.")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _check(parts: tuple[str, ...], engine: str) -> None:
    for part in parts:
        if part not in PARTS:
            raise CannotMeasure(f"bench --parts {part}: unknown. Allowed: {', '.join(PARTS)}.")
    if "reference" in parts and not {"digits", "cifar"} & set(parts):
        raise CannotMeasure(
            "bench --parts reference: needs digits or cifar too, whose methods it runs again."
        )
    if engine not in ENGINES:
        raise CannotMeasure(f"bench --engine {engine}: unknown. Allowed: {', '.join(ENGINES)}.")


# ---- training and evaluation beside the reference --------------------------------------------------------


def _train_part(bench: Bench) -> None:
    for name, (samples, batch_size) in bench.sizes.train.items():
        _beside(bench, name, cifar(samples, 0), batch_size)
    for name, (samples, batch_size) in bench.sizes.small.items():
        _beside(bench, name, digits(samples, 0), batch_size)


def _beside(bench: Bench, name: str, plugin: Any, batch_size: int) -> None:
    """The rows train and evaluate of an architecture."""
    try:
        loops = Loops(bench.device, name, plugin, batch_size, bench.engine)
    except architectures.CannotBuild as error:
        bench.left_out.append({"what": f"train {name}", "reason": str(error)})
        return
    images = (*loops.dataset.shape,)
    common = {"batch_size": batch_size, "repeats": bench.sizes.repeats}
    for what, precision_used in (("train", trained_in(bench.device)), ("evaluate", "float32")):
        found = loops.found(what, bench.sizes.warm, bench.sizes.repeats)
        flops = reference.flops_per_image(loops.model(), *images, train=what == "train")
        own = {"precision": precision_used, "flops_per_image": flops}
        row = bench.row(what, name, plugin.name, **common | own | found)
        if what == "evaluate":
            row["batch_size"] = BATCH[bench.device.type]
        bench.rows.append(row)
        bench.tell(f"{what} {name} {row['images_per_s']:.0f} images/s, {row['ratio']:.2f} of the reference")
    bench.tasks += loops.tasks()


# ---- packages --------------------------------------------------------------------------------------------


def _digits_part(bench: Bench, beside: bool) -> None:
    pool, repeats = bench.sizes.digits_pool, bench.sizes.packages[0]
    dataset = digits(pool, None if pool is None else pool // 4)
    recipe = dataset.training
    epochs = recipe["epochs"] if pool is None else bench.sizes.epochs
    # The first repeat pays for imports and first calls, of methods too, and is over in seconds.
    dropped = 1 if pool is None else 0
    package = Package(dataset, "cnn_small", epochs, recipe["batch_size"], repeats, dropped, beside)
    _package(bench, package)


def _cifar_part(bench: Bench, beside: bool) -> None:
    sizes = bench.sizes
    dataset = cifar(sizes.pool, sizes.test)
    how_much = (sizes.epochs, dataset.training["batch_size"], sizes.packages[1])
    _package(bench, Package(dataset, sizes.architecture, *how_much, beside=beside and sizes.cifar_beside))


def _places_part(bench: Bench) -> None:
    """Tasks alone: bases, of which the first repeat, with its first calls, does not count."""
    for (architecture, channels, size), (pool, batch_size) in bench.sizes.places.items():
        name = f"{architecture} at {channels}×{size}×{size}"
        dataset = synthetic(channels, size, pool, pool // 4)
        package = Package(dataset, architecture, 1, batch_size, bench.sizes.repeats)
        if (worker := _worker(bench, dataset, name)) is not None:
            runs = Runs(worker, package, lambda line, name=name: bench.tell(f"{name}: {line}"))
            for repeat in range(-1, package.repeats):
                runs.base(repeat)
            bench.tasks += runs.tasks


def _worker(bench: Bench, dataset: Any, what: str) -> Any:
    """A worker for a dataset; None, and a line in `left_out`, if what it imports is not installed."""
    try:
        return worker_for(bench.device, [dataset], bench.engine)
    except ModuleNotFoundError as error:
        bench.left_out.append({"what": what, "reason": f"{error.name} is not installed"})
        return None


def _package(bench: Bench, package: Package) -> None:
    """The rows of a package, of its methods, and its tasks."""
    name = f"{package.dataset.name} × {package.architecture}"
    if (worker := _worker(bench, package.dataset, name)) is None:
        return
    runs = run_package(worker, package, lambda line: bench.tell(f"{name}: {line}"))
    bench.tasks += runs.tasks
    bench.left_out += [{"what": f"{name}: {m}", "reason": why} for m, why in runs.left_out.items()]
    done = [method for method in all_methods() if method.name not in runs.left_out]
    bench.rows += [_method_row(bench, runs, method) for method in done]
    bench.rows.append(_package_row(bench, runs, [m.name for m in done if m.training == "plain"]))


def _method_row(bench: Bench, runs: Runs, method: Any) -> dict[str, Any]:
    of, theirs = runs.found("unlearn", method.name), runs.reference.get(method.name)
    return bench.row(
        "unlearn",
        runs.package.architecture,
        runs.package.dataset.name,
        method=method.name,
        batch_size=getattr(method(), "batch_size", None),
        images=of["training_images"],
        seconds=of["wall_s"],
        reference_images=theirs and theirs.entry["training_images"],
        reference_seconds=theirs and theirs.entry["wall_s"],
        evaluate_s=of["evaluate_s"],
        models_per_hour=3600 / (of["wall_s"] + of["evaluate_s"]),
        peak_memory_mib=of["peak_memory_mib"],
        reference_peak_memory_mib=theirs and theirs.peak_memory_mib,
        repeats=of["repeats"],
        note=runs.notes.get(method.name),
    )


def _package_row(bench: Bench, runs: Runs, names: list[str]) -> dict[str, Any]:
    """A base, a retrain and the methods of these names, which start from that base."""
    package = runs.package
    trained = [runs.found(kind) for kind in ("base", "retrain")]
    every = trained + [runs.found("unlearn", name) for name in names]
    seconds = sum(of["seconds"] for of in every)
    longer = package.dataset.training["epochs"] / package.epochs - 1
    return bench.row(
        "package",
        package.architecture,
        package.dataset.name,
        batch_size=package.batch_size,
        images=sum(of["training_images"] for of in every),
        seconds=seconds,
        evaluate_s=sum(of["evaluate_s"] for of in every),
        models=len(every),
        models_per_hour=3600 * len(every) / seconds,
        epochs=package.epochs,
        recipe_seconds=seconds + longer * sum(of["wall_s"] for of in trained),
        peak_memory_mib=max((of["peak_memory_mib"] for of in every if of["peak_memory_mib"]), default=None),
        repeats=package.repeats,
    )


# ---- the command -----------------------------------------------------------------------------------------

SHOWN = (  # heading, key, format
    ("what", "what", "{}"),
    ("architecture", "architecture", "{}"),
    ("dataset", "dataset", "{}"),
    ("method", "method", "{}"),
    ("images/s", "images_per_s", "{:,.0f}"),
    ("reference", "reference_images_per_s", "{:,.0f}"),
    ("ratio", "ratio", "{:.2f}"),
    ("of limit", "limit_fraction", "{:.0%}"),
    ("MiB", "peak_memory_mib", "{:,.0f}"),
    ("seconds", "seconds", "{:.3g}"),
    ("models/h", "models_per_hour", "{:,.0f}"),
)


def as_text(found: dict[str, Any]) -> str:
    """The rows as an aligned table, then what was left out."""
    table = [[heading for heading, _, _ in SHOWN]] + [
        ["" if row[key] is None else form.format(row[key]) for _, key, form in SHOWN] for row in found["rows"]
    ]
    widths = [max(len(line[column]) for line in table) for column in range(len(SHOWN))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 4 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
    rates = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in found["flop_per_s"].items())
    head = f"{found['device']}, {found['processor']}; matrix products: {rates}"
    return "\n".join(
        [head, *lines, *(f"not measured: {o['what']}: {o['reason']}" for o in found["left_out"])]
    )


def run(
    device: str, quick: bool, parts: str, samples: int | None, engine: str, tell: Tell = lambda line: None
) -> dict[str, Any]:
    """What the command line asks for."""
    where = _device(device)
    sizes = QUICK if quick else SIZES[where.type]
    if samples is not None:
        trained = {name: (samples, batch) for name, (_, batch) in sizes.train.items()}
        sizes = replace(sizes, train=trained, pool=samples, test=max(samples // 5, 1))
    return measure(where.type, sizes, tuple(parts.split(",")), engine, tell)


def main(arguments: list[str] | None = None) -> int:
    """`lethe bench train` without the packages of the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workers.bench_train")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: does it run? The figures mean nothing"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="some of these, with commas")
    parser.add_argument("--samples", type=int, help="pool samples of CIFAR-10's shape, at least 40")
    parser.add_argument("--engine", default="eager", help=f"how steps are taken: {', '.join(ENGINES)}")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    given = parser.parse_args(arguments)
    if given.samples is not None and given.samples < 40:
        parser.error(f"--samples: {given.samples} is too few, at least 40.")
    try:
        found = run(given.device, given.quick, given.parts, given.samples, given.engine, _say)
    except CannotMeasure as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write((json.dumps(found) if given.json else as_text(found)) + "\n")
    return 0


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
