"""Trials whose ask was cut off by a kill: they exist and run, but have only some of their parameters.

Left alone, such a trial would be run with defaults in place of what is missing, and the parameters missing in
it would drop out of what TPE searches together. So what the ask would have drawn is drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

MakeSampler = Callable[[int], optuna.samplers.BaseSampler]


def finish(study: optuna.Study, space: Mapping[str, BaseDistribution], sampler: MakeSampler) -> list[int]:
    """Draw the missing parameters of running trials; the numbers of these trials. To be called before any
    trial is told. sampler: the sampler of a trial number, seeded as in the ask that was cut off.

    TPE and random draw what they would have drawn. What NSGA-III and QMC have noted in the study before the
    cut stays noted: the rest of such a trial comes from the next point of the sequence, or of the generation.
    """
    mended = []
    for trial in study.get_trials(deepcopy=True):
        if trial.state == TrialState.RUNNING and space.keys() - trial.params.keys():
            study.sampler = sampler(trial.number)
            _redraw(study, trial, space)
            mended.append(trial.number)
    return mended


def _redraw(study: optuna.Study, torn: FrozenTrial, space: Mapping[str, BaseDistribution]) -> None:
    trial = optuna.trial.Trial(study, torn._trial_id)
    fixed = torn.system_attrs.get("fixed_params", {})
    for name, distribution in space.items():
        if name not in torn.params:
            trial._suggest(name, distribution)
        elif name not in fixed and not distribution.single() and name not in trial.relative_params:
            study.sampler.sample_independent(
                study, torn, name, distribution
            )  # the next draw follows this one
