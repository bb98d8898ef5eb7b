"""The contract of a method as functions that raise AssertionError, for our methods and for mutants of them.

Each check takes the class of a method, a toy problem, and the Case of the method: what cannot be asked of its
default hyper-parameters on a toy of 256 retained samples, and why. The checks on data are in checks_data.py,
the list of all checks is in contract.py.
"""

from __future__ import annotations

import copy
import inspect
import math
import random
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from methods.base import Diverged, Method
from orchestrator.catalogue import COSTS, Parameter, Plugin, read
from tests.contract.toy import Toy, data_for, few, memory, problem, utility
from workers import run_task
from workers.evaluate import evaluate

FLOOR = 0.5  # test accuracy, twice that of guessing
TOLERANCE = 1e-5  # of a weight: what is smaller counts as rounding


@dataclass(frozen=True)
class Case:
    """Hyper-parameters for checks where the defaults do not do, with the reason."""

    zero: dict[str, Any] = field(default_factory=lambda: {"epochs": 0})
    zero_rounds: int = 1  # how often a method without a step is applied until the base must be back
    toy: dict[str, Any] = field(default_factory=dict)
    short: dict[str, Any] = field(default_factory=dict)  # on top of what `short` says
    defaults_lose_the_toy: bool = False
    fresh: Callable[[nn.Module], list[nn.Module]] = lambda _: []  # layers drawn anew at any strength
    deterministic: bool = False  # nothing is drawn at random, neither samples nor numbers
    reason: str = ""


Unlearn = Callable[[Method, nn.Module, Any], tuple[nn.Module, Any]]


def apply(
    method: Method, toy: Toy, seed: int = 1, data: Any = None, unlearn: Unlearn = run_task.unlearn
) -> nn.Module:
    """The model a method makes of the toy's base; a method that diverges breaks its contract."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # what a method tells of a run is a column of its row
            return unlearn(method, toy.base, data or data_for(toy, method.needs, seed))[0]
    except Diverged as error:
        raise AssertionError(f"{method} diverged: {error}") from error


def usual(method: Method, toy: Toy, unlearn: Unlearn = run_task.unlearn) -> nn.Module:
    """The same for seed 1, made once for all checks that only look at it. The base must not change."""
    return _made(method, toy, unlearn)


@lru_cache(maxsize=8)
def _made(method: Method, toy: Toy, unlearn: Unlearn) -> nn.Module:
    before = copy.deepcopy(toy.base)
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        model = apply(method, toy, unlearn=unlearn)
    assert_identical(toy.base, before, "the base handed in changed")
    assert not toy.base.training and all(p.grad is None for p in toy.base.parameters())
    return model


def short(cls: type[Method], case: Case, **values: Any) -> Method:
    """The method with at most two epochs of everything, several batches each, a rate that shows, and fewer
    samples than there are, where it draws a number of them.
    """
    names = {f.name: f.default for f in fields(cls)}
    quick: dict[str, Any] = {
        name: min(2, default) for name, default in names.items() if name.endswith("epochs")
    }
    quick |= {"batch_size": 32} if "batch_size" in names else {}
    quick |= {"learning_rate": 0.01} if "learning_rate" in names else {}
    quick |= {"samples": 64} if "samples" in names else {}
    return cls(**(quick | case.short | values))


def parameters(cls: type[Method]) -> dict[str, Parameter]:
    """The hyper-parameters as a plan reads them."""
    kinds = {f.name: f.type if isinstance(f.type, str) else f.type.__name__ for f in fields(cls)}
    return {f.name: Parameter(f.name, kinds[f.name], f.default, **f.metadata) for f in fields(cls)}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def distance(one: nn.Module, other: nn.Module) -> float:
    """Largest difference of a parameter. Running statistics do not count: a mere forward pass moves them."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def assert_identical(one: nn.Module, other: nn.Module, why: str, but: Collection[str] = frozenset()) -> None:
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys(), why
    for name in (name for name in a if name not in but):
        assert torch.equal(a[name], b[name]), f"{why}: {name} differs"


# ---- declaration ---------------------------------------------------------------------------------


CONSTANTS = ("name", "label", "paper", "version", "needs", "scope", "training", "once", "cost")


def check_declared(cls: type[Method]) -> None:
    """What a plan reads from the source is what an import gives, and nothing else is declared."""
    plugin = read(Path(inspect.getfile(cls)))
    assert plugin is not None, "the file has no class with a constant `name`"
    assert plugin.name == cls.name == cls.__module__.rpartition(".")[2]
    for constant in CONSTANTS:
        default = getattr(Method, constant, None)
        assert plugin.constants.get(constant, default) == getattr(cls, constant, None), constant
    assert plugin.parameters == parameters(cls)
    assert cls.label and cls.paper and isinstance(cls.version, int) and cls.version >= 1
    assert cls.needs and set(cls.needs) <= {"retain", "forget", "val", "codes"}
    assert cls.scope in ("random", "class", "both") and cls.training in ("plain", "mnemonic")
    assert "codes" not in cls.needs or cls.training == "mnemonic", "codes are of mnemonic training"
    check_formulas(cls)


def check_formulas(cls: type[Method]) -> None:
    """The cost is a number ≥ 0 at any point, and of sets that are not in `needs` nothing is read."""
    assert set(getattr(cls, "cost", {"": ""})) <= set(COSTS), f"cost is a dict of formulas of {COSTS}"
    rng = random.Random(0)
    for _ in range(20):
        values = {name: drawn(p, rng) for name, p in parameters(cls).items()}
        sizes = {f"{name}_size": rng.randint(1, 50_000) for name in ("retain", "forget", "val")}
        for point in (values, {f.name: f.default for f in fields(cls)}):
            for name, found in declared(cls).cost(point | sizes).items():
                assert math.isfinite(found) and found >= 0, f"cost of {name} is {found} at {point}"
                assert name in ("copies", *cls.needs) or found == 0, f"{name} has a cost and is not in needs"


def declared(cls: type[Method]) -> Plugin:
    """What the catalogue would read of a class, in whatever file it is."""
    return Plugin(cls.name, "methods", "", {"cost": cls.cost}, parameters(cls))


def check_space(cls: type[Method]) -> None:
    """Every parameter has a range or choices, its default lies within, and any point can be built."""
    for p in parameters(cls).values():
        assert type(p.default).__name__ == p.kind, p.name
        if p.choices is not None:
            assert p.default in p.choices and len(p.choices) > 1, p.name
        else:
            assert p.low <= p.default <= p.high and p.low < p.high, p.name
            assert not p.log or p.low > 0, p.name
    rng = random.Random(0)
    for _ in range(20):
        point = {name: drawn(p, rng) for name, p in parameters(cls).items()}
        method = cls(**point)
        assert {name: getattr(method, name) for name in point} == point


def drawn(p: Parameter, rng: random.Random) -> Any:
    """A random value of a parameter."""
    if p.choices is not None:
        return rng.choice(p.choices)
    if p.kind == "int":
        return rng.randint(p.low, p.high)
    if p.log:
        return math.exp(rng.uniform(math.log(p.low), math.log(p.high)))
    return rng.uniform(p.low, p.high)


def check_unknown_hyperparameter(cls: type[Method]) -> None:
    try:
        cls(no_such_parameter=1)
    except TypeError:
        return
    raise AssertionError("an unknown hyper-parameter is accepted")


def check_random_point(cls: type[Method], toy: Toy, case: Case) -> None:
    """A random point of the space gives finite weights or the result Diverged, nothing else."""
    rng = random.Random(1)
    point = {name: drawn(p, rng) for name, p in parameters(cls).items()}
    point |= {name: min(3, value) for name, value in point.items() if name.endswith("epochs")}
    try:
        model, _ = run_task.unlearn(cls(**point), toy.base, data_for(toy, cls.needs))
        evaluate(model, toy.dataset)
    except Diverged:
        return


# ---- behaviour -----------------------------------------------------------------------------------


def check_every_hyperparameter_matters(cls: type[Method], toy: Toy, case: Case) -> None:
    """A value far from the usual one gives weights that differ by more than rounding, or diverges."""
    plain = short(cls, case)
    for p in parameters(cls).values():
        other = replace(plain, **{p.name: far_from(p, getattr(plain, p.name))})
        try:
            model = run_task.unlearn(other, toy.base, data_for(toy, cls.needs))[0]
        except Diverged:
            continue
        assert distance(usual(plain, toy), model) > TOLERANCE, f"{p.name} does nothing"


def far_from(p: Parameter, value: Any) -> Any:
    """The end of the range that is farther from `value`, of integers at most four away, for time's sake."""
    if p.choices is not None:
        return p.choices[-1] if value != p.choices[-1] else p.choices[0]
    if p.kind == "int":
        return min(p.high, value + 4) if value - p.low < 2 else p.low
    if p.log:
        return p.low if value * value > p.low * p.high else p.high
    return p.low if 2 * value > p.low + p.high else p.high


def check_zero_steps(cls: type[Method], toy: Toy, case: Case) -> None:
    """Without a step and with its pre-steps at strength zero, a method returns its input bit for bit.

    A pre-step without a strength is asked for what it must satisfy: a transposition done twice is none, and
    re-initialised layers are others while the rest is the input.
    """
    model = toy.base
    for _ in range(case.zero_rounds):
        model = apply(cls(**case.zero), replace(toy, base=model))
    parts = {id(p): name for name, p in model.named_parameters()}
    fresh = {parts[id(p)] for layer in case.fresh(model) for p in layer.parameters()}
    assert_identical(model, toy.base, "zero steps", but=fresh)
    a, b = tensors(model), tensors(toy.base)
    assert not any(torch.equal(a[name], b[name]) for name in fresh), "a fresh layer is the old one"


def check_weights_change(
    cls: type[Method], toy: Toy, case: Case, unlearn: Unlearn = run_task.unlearn
) -> None:
    """Weights change and are finite; the base handed in keeps weights, mode and gradients (see `usual`)."""
    model = usual(short(cls, case), toy, unlearn)
    assert distance(model, toy.base) > TOLERANCE, "no weight changed"
    assert all(bool(torch.isfinite(t).all()) for t in tensors(model).values() if t.is_floating_point())


def check_same_structure(cls: type[Method], toy: Toy, case: Case) -> None:
    """Same modules, keys, shapes and types, eval mode, nothing left behind."""
    model, base = usual(short(cls, case), toy), toy.base
    a, b = tensors(model), tensors(base)
    assert list(a) == list(b), "other state-dict keys"
    assert all(a[n].shape == b[n].shape and a[n].dtype == b[n].dtype for n in a), "other shapes or types"
    assert [type(m) for m in model.modules()] == [type(m) for m in base.modules()], "other modules"
    assert not any(m.training for m in model.modules()), "not in eval mode"
    trainable = [p.requires_grad for p in base.parameters()]
    assert [p.requires_grad for p in model.parameters()] == trainable, "requires_grad not restored"
    assert all(p.grad is None for p in model.parameters()), "gradients left"
    for module in model.modules():
        left = [name for name, value in vars(module).items() if "hooks" in name and value]
        assert left == [name for name in left if name in _own_hooks(base)], f"hooks left: {left}"
    for name, p in model.named_parameters():
        hooks = (p._backward_hooks, getattr(p, "_post_accumulate_grad_hooks", None))
        assert not any(hooks), f"hooks left on {name}"


def _own_hooks(base: nn.Module) -> set[str]:
    return {
        name for module in base.modules() for name, value in vars(module).items() if "hooks" in name and value
    }


def check_seeds(cls: type[Method], toy: Toy, case: Case) -> None:
    """The task's generator decides everything: same seed same tensors, another seed others, unless the case
    says that nothing is drawn.
    """
    first = usual(short(cls, case), toy)
    with torch.random.fork_rng([]):
        torch.manual_seed(2)
        again = apply(short(cls, case), toy, seed=1)
    assert_identical(first, again, "same seed")
    other = apply(short(cls, case), toy, seed=2)
    if case.deterministic:
        assert_identical(first, other, "another seed")
    else:
        assert distance(first, other) > TOLERANCE, "the seed does nothing"


def check_no_global_state(cls: type[Method], toy: Toy, case: Case) -> None:
    """Nothing of the process is changed, in a run that ends well and in one that diverges."""
    before = global_state()
    try:
        apply(short(cls, case), toy)
        same(before, global_state())
        for_nan = replace(toy, base=broken(toy.base))
        try:
            apply(short(cls, case), for_nan)
        except AssertionError:
            same(before, global_state())
    finally:
        restore(before)


def global_state() -> dict[str, Any]:
    cudnn = torch.backends.cudnn
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": str(np.random.get_state()),
        "python generator": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "global hooks": [
            len(v)
            for n, v in sorted(vars(torch_module).items())
            if n.startswith("_global_") and "hooks" in n and isinstance(v, dict)
        ],
    }


def same(before: dict[str, Any], after: dict[str, Any]) -> None:
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, f"global state changed: {changed}"


def restore(state: dict[str, Any]) -> None:
    """Undo what a mutant did, so that it fails alone."""
    torch.set_grad_enabled(state["grad mode"])
    torch.set_rng_state(torch.tensor(state["torch generator"], dtype=torch.uint8))
    torch.set_default_dtype(state["default dtype"])
    torch.backends.cudnn.benchmark = state["cudnn"][1]
    torch.set_num_threads(state["threads"])
    random.setstate(state["python generator"])


def broken(model: nn.Module) -> nn.Module:
    """A copy whose parameters are not numbers: all of them, since a method may draw some anew."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.fill_(math.nan)
    return copied


def check_diverged(cls: type[Method], toy: Toy, case: Case) -> None:
    """A loss that is not finite raises Diverged out of the method itself."""
    try:
        run_task.unlearn(short(cls, case), broken(toy.base), data_for(toy, cls.needs))
    except Diverged:
        return
    raise AssertionError("a loss that is not a number went unnoticed")


# ---- what it is for ------------------------------------------------------------------------------


def check_scope(cls: type[Method], toy: Toy, case: Case) -> None:
    """A method for any forget set also runs on a whole class; others are tested on what they are made for."""
    if cls.scope == "both":
        whole = few(problem("cnn", "class", cls.training))
        model = apply(short(cls, case), whole)
        assert distance(model, whole.base) > TOLERANCE, "no weight changed"
        evaluate(model, whole.dataset)


def check_utility(cls: type[Method], toy: Toy, case: Case) -> None:
    """The defaults leave a model of use; where they cannot on so small a toy, other hyper-parameters do."""
    found = utility(toy, apply(cls(**(case.toy if case.defaults_lose_the_toy else {})), toy))
    assert found >= FLOOR, f"test accuracy {found:.2f}"


def check_nearer_to_retraining(cls: type[Method], toy: Toy, case: Case) -> None:
    """What the model knows of the forget set (`memory`) is at most 0.9 times as far from what a retrain knows
    as it is for the base.
    """
    model = apply(cls(**case.toy), toy)
    target = memory(toy, toy.retrain)
    before, after = abs(memory(toy, toy.base) - target), abs(memory(toy, model) - target)
    assert after <= 0.9 * before, (
        f"what it knows of the forget set is {after:.2f} from retraining, was {before:.2f}"
    )
    assert utility(toy, model) >= FLOOR, "the model is lost"
