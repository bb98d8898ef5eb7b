"""The figures of the report at points worked out by hand or by formula."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from attacks import exposed, ulira
from orchestrator import figures, figures_roc
from orchestrator.plan import Cell
from orchestrator.report_rows import CellReport, Entry

STYLE = ("#0072B2", "solid", "circle")
CELL = Cell("c", "digits", "cnn_small", "random()", 1, {}, {}, [])


def curve(tpr: np.ndarray, fpr: np.ndarray = ulira.ROC_GRID, n_negative: int = 10**6) -> dict[str, Any]:
    """A row of audits with this ROC and a band without width."""
    rates = {name: tpr.tolist() for name in ("roc_tpr", "roc_low", "roc_high")}
    return rates | {"roc_fpr": fpr.tolist(), "n_negative": n_negative}


def drawn(figure: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The points of the line of a figure with one curve."""
    line = figure["data"][-1]
    return np.array(line["x"]), np.array(line["y"], dtype=float)


def entry(label: str, **row: Any) -> Entry:
    """A method with a row of audits for forgotten against retrained."""
    facts = {"method": "finetune", "label": label, "kind": "unlearn", "ta": None}
    facts |= {"auc_forgotten_vs_retrained": None, "indisc": None}
    return Entry(facts, {"forgotten_vs_retrained": row}, [])


# ---- probit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [0.0, 0.5, 1.5])
def test_a_gaussian_world_is_a_straight_line_of_slope_one(d: float) -> None:
    x, y = drawn(figures_roc.probit([("a", STYLE, curve(ndtr(ndtri(ulira.ROC_GRID) + d)))]))
    inside = y < y.max() if d else y <= y.max()  # what is above the upper edge lies on it
    x, y = x[inside], y[inside]
    assert len(x) > 100
    slope, intercept = np.polyfit(x, y, 1)
    assert slope == pytest.approx(1, abs=1e-3) and intercept == pytest.approx(d, abs=1e-3)
    np.testing.assert_allclose(y, x + d, atol=2e-3)  # four digits are kept


def test_so_is_one_that_the_attack_has_measured() -> None:
    """64 pairs and 500 samples, each shifted by 1: fits of 63 scores cost a few percent of the distance."""
    generator = np.random.default_rng(0)
    forgotten, retrained = generator.normal(1, 1, (64, 500)), generator.normal(0, 1, (64, 500))
    found = ulira.compare(forgotten, retrained, replicates=20)
    row = {name: getattr(found, name).tolist() for name in ("roc_fpr", "roc_tpr", "roc_low", "roc_high")}
    x, y = drawn(figures_roc.probit([("a", STYLE, row | {"n_negative": found.n_negative})]))
    slope, intercept = np.polyfit(x[x > ndtri(0.003)], y[x > ndtri(0.003)], 1)
    assert slope == pytest.approx(1, abs=0.03) and intercept == pytest.approx(0.98, abs=0.04)


def test_the_lines_of_gaussian_privacy_go_through_their_published_points() -> None:
    """TPR at FPR 1 % of two Gaussians μ apart: .01, .033899, .092362, .372081 (spec: analytic worlds)."""
    layout = figures_roc.probit([("a", STYLE, curve(ulira.ROC_GRID, n_negative=1000))])["layout"]
    lines = [shape for shape in layout["shapes"] if shape["type"] == "line" and "yref" not in shape]
    assert [line["y1"] - line["y0"] - (line["x1"] - line["x0"]) for line in lines] == pytest.approx([0] * 4)
    tpr = [ndtr(line["y0"] + ndtri(0.01) - line["x0"]) for line in lines]
    assert tpr == pytest.approx([0.01, 0.033899, 0.092362, 0.372081], abs=1e-5)
    panel = [layout[axis]["range"][1] for axis in ("xaxis", "yaxis")]
    assert all(line["x1"] <= panel[0] and line["y1"] <= panel[1] for line in lines)
    names = [note for note in layout["annotations"] if note["text"].startswith("μ")]
    assert [note["text"] for note in names] == ["μ = 0", "μ = 0.5", "μ = 1", "μ = 2"]
    assert [(note["x"], note["y"]) for note in names] == [(line["x1"], line["y1"]) for line in lines]


def test_rates_of_zero_and_one_stay_inside_the_probit_panel() -> None:
    fpr, tpr = np.array([1e-5, 0.001, 0.01, 0.1, 1.0]), np.array([0.0, 0.0, 0.5, 1.0, 1.0])
    figure = figures_roc.probit([("a", STYLE, curve(tpr, fpr, 1000))])
    low, high, line = figure["data"]
    edge = pytest.approx(ndtri(0.999), abs=1e-3)
    assert line["x"] == pytest.approx(ndtri([0.001, 0.01, 0.1]), abs=1e-3), "FPR 1 lies at infinity"
    assert line["y"] == [None, 0, edge] and line["customdata"] == [[0.001, 0], [0.01, 0.5], [0.1, 1]]
    assert low["y"] == high["y"] == [pytest.approx(ndtri(0.001), abs=1e-3), 0, edge]
    assert figure["layout"]["shapes"][0]["x1"] == pytest.approx(ndtri(10 / 1000))
    axis = figure["layout"]["yaxis"]
    assert dict(zip(axis["ticktext"], axis["tickvals"], strict=True))["0.99"] == pytest.approx(2.326)


# ---- sample by sample ------------------------------------------------------------------------------------


def spread(share: float, pairs: int = 16, samples: int = 2000) -> dict[str, Any]:
    """Columns of audits of a world in which a share of the samples is always recognised."""
    generator = np.random.default_rng(0)
    forgotten, retrained = generator.normal(size=(2, pairs, samples))
    forgotten[:, : int(share * samples)] += 100
    found = exposed.auc_spread(forgotten, retrained)
    return {"sample_auc_quantiles": found.curve, "sample_auc_null_quantiles": found.null_curve}


def distribution(trace: dict[str, Any], value: float) -> float:
    """The share that a step line reaches at a value."""
    return float(np.array(trace["y"])[np.array(trace["x"]) <= value].max(initial=0))


def test_the_distribution_of_a_world_with_a_known_share_of_leaks() -> None:
    entries = [entry("quiet", **spread(0.0)), entry("leaks", **spread(0.3))]
    (packed,) = figures.of_cell(CellReport(CELL, entries))
    assert packed["kind"] == "samples"
    (figure,) = json.loads(packed["json"])
    quiet, leaks, noise = figure["data"]
    assert [trace["meta"] for trace in figure["data"]] == ["quiet", "leaks", "noise alone"]
    assert noise["line"]["dash"] == "dash" and quiet["line"]["shape"] == "hv"
    assert distribution(leaks, 0.999) == pytest.approx(0.7) and distribution(leaks, 1) == 1
    for value in (0.4, 0.5, 0.6):
        assert distribution(quiet, value) == pytest.approx(distribution(noise, value), abs=0.04)
        assert distribution(leaks, value) == pytest.approx(0.7 * distribution(noise, value), abs=0.04)


def test_rows_with_other_numbers_of_scores_have_a_null_each_and_one_name() -> None:
    entries = [entry("a", **spread(0.0)), entry("b", **spread(0.0, pairs=8))]
    (figure,) = json.loads(figures.of_cell(CellReport(CELL, entries))[0]["json"])
    noise = [trace for trace in figure["data"] if trace["meta"] == "noise alone"]
    assert [trace.get("showlegend", True) for trace in noise] == [True, False]
    assert noise[0]["x"] != noise[1]["x"]


def test_rows_of_older_audits_have_no_distribution() -> None:
    nothing = {"sample_auc_quantiles": None, "sample_auc_null_quantiles": None}
    assert figures.of_cell(CellReport(CELL, [entry("a", **nothing), entry("b")])) == []
    (figure,) = json.loads(
        figures.of_cell(CellReport(CELL, [entry("a", **nothing), entry("b", **spread(0))]))[0]["json"]
    )
    assert [trace["meta"] for trace in figure["data"]] == ["b", "noise alone"]


def test_names_cannot_leave_the_figures() -> None:
    rates = curve(ulira.ROC_GRID, n_negative=100)
    name = "</script><img src=x onerror=alert(1)>"
    found = figures.of_cell(CellReport(CELL, [entry(name, **rates, **spread(0.5))]))
    assert [figure["kind"] for figure in found] == ["roc", "probit", "samples"]
    for figure in found:
        assert "<" not in figure["json"] and ">" not in figure["json"]
        traces = [t for view in json.loads(figure["json"]) for t in view["data"] if t["meta"] == name]
        assert all("<" not in trace.get("name", "") for trace in traces) and traces  # plotly reads HTML
