"""Identity: the same content has the same id, wherever and whenever; a golden value catches a change."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.keys import ID_LENGTH, Digester, canonical, derived_seed, digest, present, seed_name

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_golden_values() -> None:
    """Ids are stored in results: a change of these numbers orphans them all."""
    assert canonical({"b": [1, 0.5, "ö"], "a": None}) == '{"a":null,"b":[1,0.5,"\\u00f6"]}'
    assert digest({"kind": "base", "seed": 3, "learning_rate": 0.1}) == "87e1fc0a15b487108187"
    assert derived_seed("train", "cifar10", "resnet18", 3) == 4061265941122317953


@given(st.dictionaries(st.text(), JSON, min_size=2, max_size=6))
def test_the_order_of_keys_does_not_matter(value: dict[str, object]) -> None:
    backwards = dict(reversed(list(value.items())))
    assert canonical(backwards) == canonical(value)
    assert digest(backwards) == digest(value)


@given(JSON, JSON)
def test_other_content_has_another_id(one: object, other: object) -> None:
    assert (digest(one) == digest(other)) == (canonical(one) == canonical(other))
    assert len(digest(one)) == ID_LENGTH and set(digest(one)) <= set("0123456789abcdef")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_has_no_json_is_refused(value: float) -> None:
    with pytest.raises(ValueError):
        digest({"learning_rate": value})


def test_an_option_at_its_neutral_value_leaves_no_trace() -> None:
    assert digest(present({"a": 1, "new": None})) == digest({"a": 1})
    assert digest(present({"a": 1, "new": 0})) != digest({"a": 1})  # 0 and False are values, not absence


def test_ids_and_seeds_are_the_same_in_another_process() -> None:
    """Python's own `hash` is salted per process; ours must not be."""
    code = (
        "from orchestrator.keys import *; print(digest({'a': [1, 'x']}), derived_seed('init', 'digits', 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [digest({"a": [1, "x"]}), str(derived_seed("init", "digits", 0))]


def test_seeds_differ_in_every_part_and_fit_into_63_bits() -> None:
    parts = itertools.product(("init", "order"), ("digits", "cifar10"), ("main", "audit"), range(50))
    seeds = [derived_seed(*names) for names in parts]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed("a", "b") != derived_seed("b", "a")
    assert derived_seed("a", 1, 2) != derived_seed("a", 12)


def test_a_digester_gives_the_same_digests_and_knows_objects_apart() -> None:

    digester = Digester(["b", "c"])
    shared = {"y": [1, 2.5, None], "x": 'quote " and ö'}
    for value in (
        {"c": shared, "a": 1, "b": shared},
        {"b": shared, 'odd " key': True},
        {"b": {"y": 1}, "a": {}},
        {"b": {"y": 2}},
        {"b": 1, "c": "1"},
        {"a": True, "b": False, "c": None, "d": [True], "e": 'a"b', "f": "ö", "g": ""},
        {},
    ):
        assert digester.digest(value) == digest(value)
        assert digester.text(value) == canonical(value)
    assert all(digester.digest({"b": {"n": n}}) == digest({"b": {"n": n}}) for n in range(1000))


def test_digests_around_some_values_are_those_of_the_whole() -> None:
    """Whatever stands around them: a percent sign, a shared value, keys before, between and behind."""
    shared = {"name": "50 %s", "version": 1}
    common = {"dataset": shared, "kind": "unlearn", "share": 0.1, "note": "100 % \u00fc", "augment": True}
    digester = Digester(["dataset", "method"])
    digest_of = digester.around(common, "base", "zeta", "method")
    for base, zeta, method in (("0a", 3, {"name": "a%d"}), ("ff", {"x": -1}, shared), ("%", None, {})):
        whole = common | {"base": base, "zeta": zeta, "method": method}
        assert digest_of(base, zeta, method) == digest(whole) == digester.digest(whole)


def test_a_name_stands_for_the_first_parts_of_a_seed() -> None:
    assert derived_seed(seed_name("a", 1, "b"), 2) == derived_seed("a", 1, "b", 2)
