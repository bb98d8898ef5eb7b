"""What a study searches, as Optuna's distributions, and the samplers, seeded trial by trial."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from orchestrator.catalogue import Parameter


def distributions(space: Mapping[str, Parameter]) -> dict[str, BaseDistribution]:
    """Optuna's distributions of parameters: choices, integers or reals, log-scaled or not."""
    found: dict[str, BaseDistribution] = {}
    for name, declared in space.items():
        if declared.choices is not None:
            found[name] = CategoricalDistribution(declared.choices)
        elif declared.kind == "int":
            found[name] = IntDistribution(declared.low, declared.high, log=declared.log)
        else:
            found[name] = FloatDistribution(declared.low, declared.high, log=declared.log)
    return found


def searchable(declared: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The parameters that have a range or choices."""
    return {
        name: p
        for name, p in declared.items()
        if p.choices is not None or (p.low is not None and p.high is not None)
    }


def make_sampler(name: str, study: str, number: int) -> optuna.samplers.BaseSampler:
    """The sampler for one trial. Its seed is a hash of study and trial number, so that a study that was
    killed draws what it would have drawn; what a sampler keeps besides lies in the storage.
    """
    seed = int.from_bytes(hashlib.sha256(f"{study}|{number}".encode()).digest()[:4], "big")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _sampler(name, study, seed)


def _sampler(name: str, study: str, seed: int) -> optuna.samplers.BaseSampler:
    match name:
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
        case "nsga3":
            return optuna.samplers.NSGAIIISampler(seed=seed)
        case "qmc":
            of_study = int.from_bytes(hashlib.sha256(study.encode()).digest()[:4], "big")
            return optuna.samplers.QMCSampler(scramble=True, seed=of_study, warn_asynchronous_seeding=False)
        case _:
            return optuna.samplers.TPESampler(seed=seed, multivariate=True)
