"""The contract of forget recipes, over all that are found by folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from methods.base import plugin
from orchestrator.catalogue import GIVEN, SHARE, formula, plugins
from workers import designs
from workers.designs import FORGET, OUT, RETAIN, VAL

RECIPES = {name: plugin("workers.forget", name) for name in plugins("forget")}
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [100, 120, 80, 200, 101]))
PARTS = 2 * LABELS + np.random.default_rng(1).integers(0, 2, len(LABELS))  # two subclasses of each class
VALUES = {"labels": LABELS, "subclasses": PARTS}
LIST = designs.mask(np.random.default_rng(2).choice(len(LABELS), 41, replace=False), len(LABELS))
MAIN = {"track": "main", "val_fraction": 0.15}


@dataclass(frozen=True)
class Case:
    """A recipe with parameters; those the toy problem needs others of than the defaults, or several."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name + "".join(f" {key}={value}" for key, value in self.parameters.items())


OTHERS = [
    Case("random", {"fraction": 0.03}),
    Case("random", {"count": 37}),
    Case("class", {"classes": (1, 4)}),
    Case("subclass", {"subclasses": (3,)}),
    Case("subclass", {"subclasses": (0, 5, 8)}),
]
CASES = [Case(name) for name in RECIPES] + OTHERS
AUDITED = [case for case in CASES if plugins("forget")[case.name].audit_sets != "none"]


def sets_of(case: Case, wished: int = 5) -> int:
    return wished if plugins("forget")[case.name].audit_sets == "many" else 1


def audit(pair: int, half: int) -> dict[str, Any]:
    return {"track": "audit", "val_fraction": 0.15, "pair": pair, "half": half}


def states_of(
    case: Case,
    members: dict[str, Any],
    draw: dict[str, int] | None = None,
    key: str = "",
    forget: bool = True,
) -> np.ndarray:
    """The states of a design of the toy problem; without its forget set too."""
    recipe = RECIPES[case.name](**case.parameters)
    given = getattr(recipe, "given", "labels")
    if case.name == "listed":
        members = members | {"listed": LIST}
    if case.name == "memorised":  # found among those who can be trained on
        among = designs.members("toy", LABELS, MAIN) == RETAIN
        given_values = designs.mask(np.flatnonzero(among)[: recipe.count], len(LABELS))
    else:
        given_values = LIST if given == "listed" else VALUES[given]
    bound = recipe if given == "labels" else designs.By(recipe, given_values)
    return designs.build("toy", LABELS, members, bound if forget else None, key or str(case), draw)


def fractions(case: Case, members: int, pool: int) -> float:
    """The share of the members that the recipe says it forgets, at these counts of the toy problem."""
    declared = plugins("forget")[case.name]
    values = {key: p.default for key, p in declared.parameters.items()} | case.parameters
    sizes = {key: len(v) if isinstance(v, tuple) else v for key, v in values.items()}
    counts = {"num_classes": 5, "num_subclasses": 10, "members": members, "pool": pool}
    return formula(declared.constants["share"], sizes | counts | {"listed": int(LIST.sum())})


# ---- what is declared ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_what_plans_read_is_declared(name: str) -> None:
    cls, declared = RECIPES[name], plugins("forget")[name]
    for key in ("name", "label", "paper", "version", "scope", "share"):
        assert declared.constants[key] == getattr(cls, key), key
    assert declared.scope in ("random", "class") and declared.audit_sets in ("many", "one", "none")
    assert getattr(cls, "audit_sets", declared.audit_sets) == declared.audit_sets
    assert declared.constants.get("given", "labels") == getattr(cls, "given", "labels")
    assert getattr(cls, "given", "labels") in GIVEN
    assert set(declared.constants.get("alternatives", ())) <= declared.parameters.keys()
    text = declared.constants["share"]
    words = {word for word in text.replace("(", " ").replace(")", " ").split() if word.isidentifier()}
    assert words - {"if", "else"} <= {*SHARE, *declared.parameters}


# ---- main track ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_main_track_forgets_members_only_and_the_same_ones_each_time(case: Case) -> None:
    before, states = states_of(case, MAIN, forget=False), states_of(case, MAIN)
    gone = states == FORGET
    assert gone.any() and np.any(states == RETAIN) and not np.any(states == OUT)
    assert np.all(before[gone] == RETAIN) and np.array_equal(states[~gone], before[~gone])
    assert np.sum(states == VAL) == round(0.15 * len(LABELS))
    assert np.array_equal(states, states_of(case, MAIN))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_share_that_plans_count_with_is_near_the_truth(case: Case) -> None:
    """A subclass and a class are taken as equally large, in truth they are from 80 to 200 of 601."""
    states = states_of(case, MAIN)
    members, gone = int(np.sum(states != VAL)), int(np.sum(states == FORGET))
    near = 0.85 if case.name in ("class", "subclass") else 1.5 / gone
    assert gone / members == pytest.approx(fractions(case, members, members), rel=near)


@pytest.mark.parametrize(("name", "share"), [("class", 2 / 5), ("subclass", 2 / 10)])
def test_the_share_of_classes_is_exact_where_they_are_equally_large(name: str, share: float) -> None:
    equal = np.repeat(np.arange(5 if name == "class" else 10), 100)
    case = Case(name, {"classes" if name == "class" else "subclasses": (1, 4)})
    gone = RECIPES[name](**case.parameters).draw(equal, np.ones(len(equal), bool), np.random.default_rng(0))
    assert gone.mean() == pytest.approx(share) == fractions(case, 500, 500)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_whole_classes_go_if_and_only_if_the_scope_says_so(case: Case) -> None:
    states = states_of(case, MAIN)
    whole = designs.whole_classes(LABELS, np.flatnonzero(states == RETAIN), np.flatnonzero(states == FORGET))
    assert bool(whole) == (plugins("forget")[case.name].scope == "class")


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5])
def test_random_forgets_the_exact_fraction_of_every_class(fraction: float) -> None:
    members = np.random.default_rng(1).random(len(LABELS)) < 0.7
    gone = RECIPES["random"](fraction).draw(LABELS, members, np.random.default_rng(2))
    assert gone.sum() == round(fraction * members.sum()) and not np.any(gone & ~members)
    per_class = np.bincount(LABELS[gone], minlength=5)
    assert np.all(np.abs(per_class - fraction * np.bincount(LABELS[members])) <= 1)


@pytest.mark.parametrize("count", [1, 7, 100])
def test_random_forgets_the_exact_count_stratified_by_class(count: int) -> None:
    states = states_of(Case("random", {"count": count}), MAIN)
    gone, members = states == FORGET, states != VAL
    assert gone.sum() == count
    expected = count * np.bincount(LABELS[members]) / members.sum()
    assert np.all(np.abs(np.bincount(LABELS[gone], minlength=5) - expected) <= 1)


def test_a_subclass_goes_and_the_rest_of_its_class_stays() -> None:
    states = states_of(Case("subclass", {"subclasses": (3,)}), MAIN)
    assert set(PARTS[states == FORGET]) == {3} and set(PARTS[states == RETAIN]) == set(range(10)) - {3}


# ---- audit track -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", AUDITED, ids=str)
@pytest.mark.parametrize("wished", [1, 5])
def test_audit_forgets_each_audited_member_once_in_every_base(case: Case, wished: int) -> None:
    sets = sets_of(case, wished)
    validation = states_of(case, audit(0, 0), forget=False) == VAL
    times_in_pair = []
    for pair in range(3):
        times = []
        for half in (0, 1):
            before = states_of(case, audit(pair, half), forget=False)
            drawn = [states_of(case, audit(pair, half), {"index": i, "of": sets}) for i in range(sets)]
            gone = [states == FORGET for states in drawn]
            times.append(np.sum(gone, axis=0))
            assert all(g.any() for g in gone) and not np.any(times[-1][before != RETAIN])
            assert all(np.array_equal(s[~g], before[~g]) for s, g in zip(drawn, gone, strict=True))
            sizes = [int(g.sum()) for g in gone]
            assert max(sizes) - min(sizes) <= 1
        assert not np.any(times[0] & times[1]), "halves share no member"
        times_in_pair.append(times[0] + times[1])
    audited = times_in_pair[0] > 0
    assert audited.any() and not np.any(audited & validation)
    for times in times_in_pair:
        assert np.array_equal(times, audited.astype(int)), "once per pair, and the same samples in all pairs"
    k_forget = np.sum(times_in_pair, axis=0)[audited]
    assert np.all(k_forget == 3), "as many forgotten models per audited sample as there are pairs"


@pytest.mark.parametrize("case", AUDITED, ids=str)
def test_the_share_holds_for_the_bases_of_an_audit_on_average(case: Case) -> None:
    sets, gone, members = sets_of(case), 0, 0
    for pair in range(4):
        for half in (0, 1):
            states = states_of(case, audit(pair, half), {"index": 0, "of": sets})
            gone, members = gone + int(np.sum(states == FORGET)), int(np.sum(states % 3 != 0))
    pool = int(np.sum(states != VAL))
    near = 0.85 if case.name in ("class", "subclass") else 0.12
    assert gone / 8 / members == pytest.approx(fractions(case, members, pool), rel=near)


@pytest.mark.parametrize("case", [c for c in AUDITED if sets_of(c) > 1], ids=str)
def test_another_recipe_and_another_pair_draw_others(case: Case) -> None:
    draw = {"index": 0, "of": 5}
    one = states_of(case, audit(0, 0), draw)
    assert np.array_equal(one, states_of(case, audit(0, 0), draw))
    assert not np.array_equal(one == FORGET, states_of(case, audit(1, 0), draw) == FORGET)
    assert not np.array_equal(one, states_of(case, audit(0, 0), draw, key="another"))


def test_random_audits_the_fraction_or_the_count_times_the_number_of_sets() -> None:
    pool = np.random.default_rng(1).random(len(LABELS)) < 0.85
    audited = RECIPES["random"](0.1).audited(LABELS, pool, 4, np.random.default_rng(0))
    assert audited.sum() == round(0.4 * pool.sum()) and not np.any(audited & ~pool)
    audited = RECIPES["random"](count=20).audited(LABELS, pool, 4, np.random.default_rng(0))
    assert audited.sum() == 2 * 4 * 20, "each base is trained on half of them"


# ---- lists -----------------------------------------------------------------------------------------------


def test_exactly_the_listed_samples_are_forgotten() -> None:
    """Some of them are in the validation set of a grid without the list, and leave it."""
    ordinary = designs.members("toy", LABELS, MAIN)
    assert np.any(ordinary[LIST] == VAL)
    assert np.array_equal(states_of(Case("listed"), MAIN) == FORGET, LIST)
    for pair in range(3):
        halves = [states_of(Case("listed"), audit(pair, half), {"index": 0, "of": 1}) for half in (0, 1)]
        assert np.array_equal((halves[0] == FORGET) | (halves[1] == FORGET), LIST)
        assert abs(int(np.sum(halves[0] == FORGET)) - int(np.sum(halves[1] == FORGET))) <= 1


def test_even_two_listed_samples_are_in_both_halves_of_each_pair() -> None:
    for first in range(0, 600, 97):
        listed = designs.mask([first, first + 1], len(LABELS))
        for pair in range(5):
            states = designs.members("toy", LABELS, audit(pair, 0) | {"listed": listed})
            assert sorted(states[listed]) == [OUT, RETAIN]


def test_a_list_that_is_not_trained_on_is_refused() -> None:
    members = LIST.copy()
    members[np.flatnonzero(LIST)[0]] = False
    for name in ("listed", "memorised"):
        with pytest.raises(ValueError, match=r"1 .*are no members"):
            RECIPES[name]().draw(LIST, members, np.random.default_rng(0))


def test_what_the_bases_of_an_audit_chose_is_not_audited_on_them() -> None:
    with pytest.raises(ValueError, match="main track only"):
        RECIPES["memorised"]().audited(LIST, ~LIST, 1, np.random.default_rng(0))


def test_a_list_is_known_by_its_ids_in_whatever_order() -> None:
    assert designs.list_sha256([3, 1, 20]) == designs.list_sha256((20, 3, 1))
    assert designs.list_sha256([3, 1, 20]) != designs.list_sha256([31, 20])
