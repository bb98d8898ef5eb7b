"""`lethe bench`: each claim about speed as a ratio measured in one run, over the same numbers.

`python -m orchestrator.bench attack --device cuda --json` does the same where only numpy, scipy and torch are
installed.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import betaln, digamma, polygamma

from attacks import ulira
from attacks.moderation import trigamma_inverse
from orchestrator.errors import UserError

DEVICES = ("numpy", "cpu", "cuda")
MIN_SAMPLES = 100

Floats = np.ndarray[Any, Any]


@dataclass(frozen=True)
class AttackBench:
    """seconds: three comparisons, each with exact ROC, AUC and 1,000-fold bootstrap, from the φ of all
    models, their way to the device included. loop_seconds: the log-likelihood ratios of one comparison, one
    sample after the other in plain Python, times three; ratio compares it with `scoring_seconds`, the same of
    ours. max_abs_difference: of all ratios of that comparison. device: numpy, or torch on the cpu or on cuda.
    peak_mib: of this process; for cuda, of the tensors on the card.
    """

    device: str
    models: int
    samples: int
    pairs: int
    seconds: float
    scoring_seconds: float
    loop_seconds: float
    ratio: float
    max_abs_difference: float
    peak_mib: float


def attack(
    models: int = 640, samples: int = 60_000, forget_sets: int = 10, seed: int = 0, device: str = "numpy"
) -> AttackBench:
    """U-LiRA of one cell of simulated φ: `models` unlearned models of complementary pairs of bases.

    Raises UserError for a device that is unknown or not there.
    """
    _check(device)
    _warm_up(device)
    pairs = models // forget_sets // 2
    cube, forget_set, reference = _world(pairs, forget_sets, samples, seed)
    start = time.perf_counter()
    worlds = _worlds(cube, forget_set, reference)
    there = {world: _put(phi, device) for world, phi in worlds.items()}
    found = ulira.ulira(**there)
    seconds = time.perf_counter() - start
    peak = _peak_mib(device)
    start = time.perf_counter()
    ulira.leave_pair_out(there["forgotten"], there["retrained"])
    _wait(device)
    scoring = time.perf_counter() - start
    start = time.perf_counter()
    high, low = plain_loop(*(worlds[world].astype(np.float64) for world in ("forgotten", "retrained")))
    loop = time.perf_counter() - start
    ours = found["forgotten_vs_retrained"]
    apart = max(float(np.abs(ours.llr_positive - high).max()), float(np.abs(ours.llr_negative - low).max()))
    timed = (seconds, 3 * scoring, 3 * loop, loop / scoring)
    return AttackBench(device, models, samples, pairs, *timed, apart, peak)


def _world(pairs: int, sets: int, samples: int, seed: int) -> tuple[Floats, Floats, Floats]:
    """φ (bases, sets, samples) float32 of unlearned models, the forget set of each (base, sample), -1 for
    none, and φ (bases, samples) of retrains. A third of what a base remembers is left.
    """
    rng = np.random.default_rng(seed)
    hard = rng.normal(4, 2, samples).astype(np.float32)
    memory = rng.gamma(1, 1, samples).astype(np.float32) / 3
    cube = rng.standard_normal((2 * pairs, sets, samples), dtype=np.float32) + hard
    reference = rng.standard_normal((2 * pairs, samples), dtype=np.float32) + hard
    forget_set = np.full((2 * pairs, samples), -1)
    for pair in range(pairs):
        member = rng.permutation(samples) % 2
        for half in (0, 1):
            here = np.flatnonzero(member == half)
            forget_set[2 * pair + half, here] = rng.permutation(len(here)) % sets
            cube[2 * pair + half, forget_set[2 * pair + half, here], here] += memory[here]
    return cube, forget_set, reference


def _worlds(cube: Floats, forget_set: Any, reference: Floats) -> dict[str, Floats]:
    """φ (pairs, samples) in the three worlds; see orchestrator/audit.py."""
    shape = (len(cube) // 2, cube.shape[2])
    forgotten, never, retrained = (np.empty(shape, dtype=np.float32) for _ in range(3))
    for base in range(len(cube)):
        here = np.flatnonzero(forget_set[base] >= 0)
        of, other = forget_set[base, here], base ^ 1
        forgotten[base // 2, here] = cube[base, of, here]
        never[base // 2, here] = cube[other, of, here]
        retrained[base // 2, here] = reference[other, here]
    return {"forgotten": forgotten, "never": never, "retrained": retrained}


# ---- the device ------------------------------------------------------------------------------------------


def _check(device: str) -> None:
    if device not in DEVICES:
        raise UserError(f"bench --device {device}: unknown. Allowed: {', '.join(DEVICES)}.")
    if device == "numpy":
        return
    try:
        import torch
    except ImportError:
        raise UserError(f"bench --device {device}: torch is not installed. Without it: numpy.") from None
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"bench --device cuda: torch {torch.__version__} sees no card. Here: numpy, cpu.")


def _warm_up(device: str) -> None:
    """The first call on a card loads its kernels, once per process: not what is measured."""
    tiny = np.random.default_rng(0).standard_normal((2, 4, MIN_SAMPLES), dtype=np.float32)
    ulira.compare(*(_put(world, device) for world in tiny))


def _put(phi: Floats, device: str) -> Any:
    """The array, or a tensor of it on the device."""
    if device == "numpy":
        return phi
    import torch

    return torch.from_numpy(phi).to(device)


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _peak_mib(device: str) -> float:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---- the plain loop --------------------------------------------------------------------------------------


def plain_loop(forgotten: Floats, retrained: Floats) -> tuple[Floats, Floats]:
    """The log-likelihood ratios (pairs, samples) of ulira.leave_pair_out, one sample after the other.

    For scores without missing values and variances above the floor; its own arithmetic, as a reference.
    """
    pairs, samples = forgotten.shape
    out = np.empty(forgotten.shape), np.empty(forgotten.shape)
    for p in range(pairs):
        fits = []
        for world in (forgotten, retrained):
            others = np.delete(world, p, axis=0)
            moments = [_moments(others[:, i].tolist()) for i in range(samples)]
            fits.append((moments, _prior([variance for _, variance in moments], pairs - 2)))
        for world, result in zip((forgotten, retrained), out, strict=True):
            scores = world[p].tolist()
            for i in range(samples):
                densities = [_log_t(scores[i], *m[i], pairs - 1, *prior) for m, prior in fits]
                result[p, i] = densities[0] - densities[1]
    return out


def _moments(values: list[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _prior(variances: list[float], dof: int) -> tuple[float, float, float]:
    """Prior degrees of freedom and variance (spec: attacks §1.3 c), and the constant of their t density."""
    bias = float(digamma(dof / 2)) - math.log(dof / 2)
    e = [math.log(variance) - bias for variance in variances]
    mean = math.fsum(e) / len(e)
    excess = math.fsum((x - mean) ** 2 for x in e) / (len(e) - 1) - float(polygamma(1, dof / 2))
    if excess <= 0:
        return math.inf, math.exp(mean), -0.5 * math.log(2 * math.pi)
    half = trigamma_inverse(excess)
    nu = 2 * half + dof
    constant = -float(betaln(nu / 2, 0.5)) - 0.5 * math.log(nu)
    return 2 * half, math.exp(mean + float(digamma(half)) - math.log(half)), constant


def _log_t(
    x: float, mean: float, variance: float, count: int, nu0: float, s0: float, constant: float
) -> float:
    """log t_{ν0+d}(x; mean, ŝ²(1 + 1/count)) with d = count − 1; a normal density where ν0 is infinite."""
    if math.isinf(nu0):
        spread = s0 * (1 + 1 / count)
        return constant - 0.5 * (math.log(spread) + (x - mean) ** 2 / spread)
    nu = nu0 + count - 1
    spread = (nu0 * s0 + (count - 1) * variance) / nu * (1 + 1 / count)
    return constant - 0.5 * math.log(spread) - (nu + 1) / 2 * math.log1p((x - mean) ** 2 / (nu * spread))


def as_text(found: AttackBench) -> str:
    """The figures, a line each."""
    figures = asdict(found).items()
    return "\n".join(f"{name:<20} {v if isinstance(v, str) else f'{v:,.6g}'}" for name, v in figures)


def as_json(found: AttackBench) -> str:
    """The figures in one line."""
    return json.dumps(asdict(found))


def main(arguments: list[str] | None = None) -> int:
    """`lethe bench` without the packages of the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.bench")
    parser.add_argument("what", choices=["attack"], help="what to measure")
    parser.add_argument("--samples", type=int, default=60_000, help="samples of the simulated cell")
    parser.add_argument("--device", default="numpy", help=f"where to compute: {', '.join(DEVICES)}")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    given = parser.parse_args(arguments)
    if given.samples < MIN_SAMPLES:
        parser.error(f"--samples: {given.samples} is too few, at least {MIN_SAMPLES}.")
    try:
        found = attack(samples=given.samples, device=given.device)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write((as_json(found) if given.json else as_text(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
