"""Paces of timed runs: exact worlds exactly, noisy ones within the interval as often as it says, and what is
borrowed for work that was never timed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats

from orchestrator.paces import Estimate, Load, Paces, Work

Run = tuple[Work, float, float]
SMALL, LARGE = (1, 8), (3, 32)


def work(
    kind: str = "base",
    method: str = "",
    architecture: str = "cnn_small",
    shape: tuple[int, int] = SMALL,
    dataset: str = "digits",
    track: str = "main",
) -> Work:
    return Work(kind, method, architecture, shape, dataset, track)


def load(*images: float) -> Load:
    made = Load()
    for units in images:
        made.add(units)
    return made


def limits(found: Estimate) -> tuple[float, float]:
    assert found.low is not None and found.high is not None
    return found.low, found.high


# ---- timed work ------------------------------------------------------------------------------------------


def test_an_exact_world_gives_its_seconds_and_no_width() -> None:
    """Every base takes 2 ms per image and .1 ms per evaluated one, every other repeat twice as long."""
    base, evaluation = work(), work().evaluation
    runs = [(base, 100.0 * n, 0.002 * 100 * n) for n in (1, 2, 1)] + [(evaluation, 50.0, 0.005)] * 2
    found = Paces(runs).estimate({base: load(1000, 3000), evaluation: load(50, 50)})
    assert found.seconds == pytest.approx(0.002 * 4000 + 0.0001 * 100)
    assert limits(found) == pytest.approx((found.seconds, found.seconds), rel=1e-9)
    assert found.borrowed == [] and found.missing == []


def test_pace_and_interval_by_hand() -> None:
    """Runs of 10, 12 and 14 s over 100 images: r = .12, s² = 3/2 · (4 + 0 + 4) / (3 · 144), h = 1/3. Two
    planned runs of 100 images: T = 24, G = 24, N = 2 · 144.
    """
    found = Paces([(work(), 100.0, t) for t in (10.0, 12.0, 14.0)]).estimate({work(): load(100, 100)})
    spread = 3 / 2 * 8 / (3 * 144)
    variance = spread * (24**2 / 3 + 2 * 144)
    factor = math.exp(stats.t.ppf(0.975, 2) * math.sqrt(variance) / 24)
    assert found.seconds == pytest.approx(24)
    assert limits(found) == pytest.approx((24 / factor, 24 * factor))


def test_tasks_of_one_work_err_together_and_those_of_two_apart() -> None:
    """As many seconds, once all at one pace, and once at two paces that were timed apart."""
    other = work("unlearn", "scrub")
    paces = Paces([(w, 100.0, t) for w in (work(), other) for t in (10.0, 12.0, 14.0)])
    many = load(*[100.0] * 10_000)  # so many that their own deviations cancel
    one = paces.estimate({work(): load(*[100.0] * 20_000)})
    two = paces.estimate({work(): many, other: many})
    assert one.seconds == pytest.approx(two.seconds)

    def sd(found: Estimate, freedom: int) -> float:
        return math.log(limits(found)[1] / found.seconds) / float(stats.t.ppf(0.975, freedom))

    assert sd(two, 4) == pytest.approx(sd(one, 2) / math.sqrt(2), rel=1e-3)


def test_without_a_repeat_there_are_seconds_and_no_interval() -> None:
    found = Paces([(work(), 10.0, 1.0)]).estimate({work(): load(20)})
    assert found == Estimate(pytest.approx(2.0), None, None)
    assert Paces([]).estimate({}) == Estimate(0.0, 0.0, 0.0)


def test_work_timed_once_deviates_like_the_rest() -> None:
    once = work("retrain")
    runs = [(work(), 100.0, t) for t in (10.0, 12.0, 14.0)] + [(once, 100.0, 12.0)]
    found = Paces(runs).estimate({once: load(100)})
    spread = 3 / 2 * 8 / (3 * 144)  # by hand above; one timed run and one planned: h = 1, G² = N
    factor = math.exp(stats.t.ppf(0.975, 2) * math.sqrt(2 * spread))
    assert limits(found) == pytest.approx((12 / factor, 12 * factor))


def test_no_time_at_all_is_no_trouble() -> None:
    found = Paces([(work(), 10.0, 0.0), (work(), 10.0, 0.0)]).estimate({work(): load(20)})
    assert 0 <= found.seconds < 1e-6


# ---- borrowed --------------------------------------------------------------------------------------------


def exact(*paces: tuple[Work, float]) -> Iterator[Run]:
    for of, pace in paces:
        yield from [(of, 100.0, 100 * pace)] * 2


def test_the_order_of_what_is_borrowed() -> None:
    """Each time the next best is timed too, it is taken."""
    wanted = work("unlearn", "scrub", "resnet18", LARGE, "cifar10", "audit")
    steps = [
        ("base", [(work("base", "", "resnet18", LARGE, "other"), 2.0)], 2.0),
        ("ratio", [(work(), 0.5), (work("unlearn", "scrub"), 1.5)], 2.0 * 3),
        ("dataset", [(wanted._replace(dataset="cifar100", track="main"), 5.0)], 5.0),
        ("track", [(wanted._replace(track="main"), 7.0)], 7.0),
        ("timed", [(wanted, 11.0)], 11.0),
    ]
    known: list[tuple[Work, float]] = []
    assert Paces([]).of(wanted) is None
    for how, more, seconds in steps:
        known += more
        pace = Paces(exact(*known)).of(wanted)
        assert pace is not None
        assert (pace.how, pace.seconds) == (how, pytest.approx(seconds))


def test_what_is_borrowed_is_told_with_its_seconds_and_sources() -> None:
    mnist, fashion = (work(shape=(1, 32), dataset=name) for name in ("mnist", "fashion_mnist"))
    found = Paces(exact((mnist, 2.0))).estimate({mnist: load(10), fashion: load(30)})
    [borrowed] = found.borrowed
    assert found.seconds == pytest.approx(80)
    assert (borrowed.work, borrowed.how, borrowed.runs) == (fashion, "dataset", 1)
    assert borrowed.seconds == pytest.approx(60)
    assert (borrowed.timed, borrowed.spread) == ([mnist], None)  # one dataset tells no spread


def test_the_mean_over_datasets_is_widened_by_their_spread() -> None:
    """Paces of 1 and 4: a geometric mean of 2, and log 4 / √2 between two of them."""
    one, four, new = (work(dataset=name) for name in ("a", "b", "c"))
    found = Paces(exact((one, 1.0), (four, 4.0))).estimate({new: load(10)})
    tau = math.log(4) / math.sqrt(2)
    assert found.seconds == pytest.approx(20)
    assert found.borrowed[0].spread == pytest.approx(tau)
    factor = math.exp(stats.t.ppf(0.975, 1) * tau * math.sqrt(1 + 1 / 2))
    assert limits(found) == pytest.approx((20 / factor, 20 * factor), rel=1e-6)


def test_ratios_are_those_to_bases_elsewhere_and_widened_by_their_spread() -> None:
    """`a` takes 2 and 8 times a base's pace on two architectures, so 4 times on the third, `b` 3 and 3 times:
    τ² pools both, log 4 / √2 with none, over two degrees of freedom.
    """
    timed = []
    for architecture, pace, ratio in (("one", 1.0, 2.0), ("two", 10.0, 8.0), ("three", 5.0, None)):
        base = work(architecture=architecture)
        timed.append((base, pace))
        if ratio is not None:
            timed += [(base._replace(kind="unlearn", method="a"), ratio * pace)]
            timed += [(base._replace(kind="unlearn", method="b"), 3 * pace)]
    wanted = work("unlearn", "a", "three")
    found = Paces(exact(*timed)).estimate({wanted: load(10)})
    tau = math.sqrt(math.log(4) ** 2 / 2 / 2)
    assert found.seconds == pytest.approx(10 * 5 * 4)
    assert found.borrowed[0].spread == pytest.approx(tau)
    factor = math.exp(stats.t.ppf(0.975, 2) * tau * math.sqrt(1.5))
    assert limits(found) == pytest.approx((200 / factor, 200 * factor), rel=1e-6)


def test_nothing_to_borrow_from_is_named_and_not_in_the_sum() -> None:
    strange = work("base", "", "vit_tiny")
    found = Paces(exact((work(), 2.0))).estimate({work(): load(10), strange: load(10)})
    assert (found.seconds, found.missing) == (pytest.approx(20), [strange])
    unknown = work().evaluation  # a pass forward is no training: not taken at the pace of bases
    assert Paces(exact((work(), 2.0))).estimate({unknown: load(10)}).missing == [unknown]


# ---- coverage --------------------------------------------------------------------------------------------


def check_coverage(truths: list[float], found: list[Estimate]) -> None:
    """The share of worlds whose truth is in the interval is .95 within four standard errors."""
    inside = [low <= t <= high for t, (low, high) in zip(truths, map(limits, found), strict=True)]
    assert np.mean(inside) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / len(inside)))


@pytest.mark.parametrize("planned", [4, 400])
def test_the_interval_covers_what_noisy_runs_take(planned: int) -> None:
    """Five works timed four times each, whose runs deviate by 3 to 15 %; planned are a few tasks, whose own
    deviations matter, or many, for which the paces' alone do.
    """
    rng = np.random.default_rng(0)
    works = [work("unlearn", f"m{n}") for n in range(5)]
    paces, spreads = np.array([1, 2, 3, 4, 5.0]), np.array([0.03, 0.05, 0.08, 0.1, 0.15])
    planned_images = rng.uniform(50, 200, (5, planned))
    loads = {w: load(*images) for w, images in zip(works, planned_images, strict=True)}
    truths, found = [], []
    for _ in range(1500):
        timed = 100 * paces[:, None] * (1 + spreads[:, None] * rng.standard_normal((5, 4)))
        found.append(
            Paces((w, 100.0, t) for w, times in zip(works, timed, strict=True) for t in times).estimate(loads)
        )
        own = 1 + spreads[:, None] * rng.standard_normal(planned_images.shape)
        truths.append(float((paces[:, None] * planned_images * own).sum()))
    check_coverage(truths, found)


def test_the_interval_covers_what_borrowed_methods_take() -> None:
    """Six methods timed beside bases on three architectures, of which the ratios deviate by 20 %, and planned
    on a fourth, where only bases were timed.
    """
    rng = np.random.default_rng(1)
    truths, found = [], []
    for _ in range(400):
        runs: list[Run] = []
        ratios = np.exp(rng.normal(0, 1, 6))[:, None] * np.exp(0.2 * rng.standard_normal((6, 4)))
        for place, pace in enumerate((1.0, 3.0, 5.0, 7.0)):
            noise = 1 + 0.02 * rng.standard_normal((7, 3))
            of = work(architecture=f"a{place}")
            runs += [(of, 100.0, 100 * pace * e) for e in noise[6]]
            for m in range(6) if place < 3 else ():
                unlearn = of._replace(kind="unlearn", method=f"m{m}")
                runs += [(unlearn, 100.0, 100 * pace * ratios[m, place] * e) for e in noise[m]]
        wanted = {work("unlearn", f"m{m}", "a3"): load(*[100.0] * 50) for m in range(6)}
        found.append(Paces(runs).estimate(wanted))
        truths.append(float(5000 * 7.0 * ratios[:, 3].sum()))
    check_coverage(truths, found)
