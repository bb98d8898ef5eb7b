"""The figures of the HTML report as plotly JSON: ROC curves, AUC sample by sample, utility against leakage.

They are written without plotly's Python objects: a figure is data and a layout. Colours of text and grid are
set in the page, where light or dark is known.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from orchestrator import figures_roc
from orchestrator.figures_roc import RESOLVED, Curve, Figure, Style, thin
from orchestrator.report_audit import COMPARISONS
from orchestrator.report_rank import LEAKAGE
from orchestrator.report_rows import CellReport, Entry

# Six colours of Okabe and Ito that read on white and on black (https://jfly.uni-koeln.de/color/); with three
# dashes and three symbols they tell 18 methods apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dot")
SYMBOLS = ("circle", "square", "diamond")
NULL = ("#7d7d7d", "dash", "")
REFERENCES = {"base": ("#7d7d7d", "dashdot", "x"), "retrain": ("#7d7d7d", "solid", "star")}
NAMES = {
    "forgotten_vs_retrained": "forgotten vs retrained",
    "forgotten_vs_never": "forgotten vs never seen",
    "fingerprint": "fingerprint",
}

ROC_NOTE = (
    "Steps with pointwise 95 % bands; the dashed diagonal is guessing. In the shaded region fewer"
    f" than {RESOLVED} false positives stand behind a rate."
)
PROBIT_NOTE = (
    "The same rates at Φ⁻¹: two Gaussian worlds give a straight line. No test against μ-GDP lies above"
    " TPR = Φ(Φ⁻¹(FPR) + μ), the thin parallels; μ = 0 is guessing."
)
SAMPLES_NOTE = (
    "Share of samples whose own AUC, over the pairs, is at most x. Where nothing leaks a curve lies on the"
    " dashed one, noise alone; samples that leak bend it to the right, those forgotten further than"
    " retraining forgets to the left."
)


def plotly_js() -> str:
    """The source of plotly.js, to be inlined."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def of_cell(cell: CellReport) -> list[dict[str, Any]]:
    """The figures of a cell: title, note, and named views as JSON that is safe inside a script element."""
    styles = _styles(cell.entries)
    found = []
    curves = {name: _curves(cell.entries, styles, name) for name in COMPARISONS}
    audited = [name for name in COMPARISONS if curves[name]]
    if audited:
        views = [(NAMES[name], figures_roc.log_log(curves[name])) for name in audited]
        found.append(_packed("roc", "ROC of U-LiRA", ROC_NOTE, views))
        views = [(NAMES[name], figures_roc.probit(curves[name])) for name in audited]
        found.append(_packed("probit", "ROC of U-LiRA, probit axes", PROBIT_NOTE, views))
    if samples := _samples(cell.entries, styles):
        found.append(_packed("samples", "Leakage sample by sample", SAMPLES_NOTE, [("", samples)]))
    if scatter := _scatter(cell.entries, styles):
        note = "Dotted lines: retraining. A method should lie where they cross. Bars are 95 % intervals."
        found.append(_packed("scatter", "Utility against leakage", note, [("", scatter)]))
    return found


def _packed(kind: str, title: str, note: str, views: list[tuple[str, Figure]]) -> dict[str, Any]:
    text = json.dumps([figure for _, figure in views], allow_nan=False, separators=(",", ":"))
    safe = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return {"kind": kind, "title": title, "note": note, "views": [name for name, _ in views], "json": safe}


def _curves(entries: list[Entry], styles: list[Style], comparison: str) -> list[Curve]:
    """Label, style and row of audits of each entry that has the comparison."""
    return [
        (entry.row["label"], style, entry.curves[comparison])
        for entry, style in zip(entries, styles, strict=True)
        if entry.curves.get(comparison, {}).get("roc_fpr") is not None
    ]


def _styles(entries: list[Entry]) -> list[Style]:
    """Colour, dash and symbol of each entry: references grey, methods by place in alphabetical order."""
    names = sorted((entry.row["method"], entry.row["label"]) for entry in entries)
    methods = [name for name in names if name[0] not in REFERENCES]
    styles = []
    for entry in entries:
        if entry.row["kind"] in REFERENCES:
            styles.append(REFERENCES[entry.row["kind"]])
            continue
        turn, color = divmod(methods.index((entry.row["method"], entry.row["label"])), len(PALETTE))
        styles.append((PALETTE[color], DASHES[turn % 3], SYMBOLS[turn % 3]))
    return styles


# ---- sample by sample --------------------------------------------------------------------------------------


def _samples(entries: list[Entry], styles: list[Style]) -> Figure | None:
    """The empirical distribution of the per-sample AUC of each entry, and that of noise alone; None where no
    row of audits has it.
    """
    found = [
        (entry.row["label"], style, curve)
        for entry, style in zip(entries, styles, strict=True)
        if (curve := entry.curves.get(COMPARISONS[0], {})).get("sample_auc_quantiles") is not None
    ]
    if not found:
        return None
    nulls = dict.fromkeys(tuple(curve["sample_auc_null_quantiles"]) for _, _, curve in found)
    noise = [_ecdf("noise alone", NULL, null) for null in nulls]  # one, if all rows have the same scores
    for line in noise[1:]:
        line["showlegend"] = False
    lines = [_ecdf(label, style, curve["sample_auc_quantiles"]) for label, style, curve in found]
    middle = {"type": "line", "x0": 0.5, "x1": 0.5, "yref": "paper", "y0": 0, "y1": 1}
    return {
        "data": lines + noise,
        "layout": {
            "xaxis": {"title": {"text": "AUC of a sample, forgotten vs retrained"}, "range": [0, 1]},
            "yaxis": {"title": {"text": "share of samples"}, "range": [0, 1.01], "tickformat": ".0%"},
            "shapes": [middle | {"line": thin("dot"), "layer": "below"}],
        },
    }


def _ecdf(label: str, style: Style, quantiles: Sequence[float]) -> Figure:
    """Steps through the 0 %, 1 %, … 100 % quantiles: within 1 % of the whole distribution."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [float(f"{value:.4g}") for value in quantiles],
        "y": [place / (len(quantiles) - 1) for place in range(len(quantiles))],
        "name": html.escape(label),
        "meta": label,
        "line": {"shape": "hv", "color": style[0], "dash": style[1], "width": 2},
        "hovertemplate": "%{y:.0%} of the samples have an AUC ≤ %{x:.3f}",
    }


# ---- utility against leakage -------------------------------------------------------------------------------


def _scatter(entries: list[Entry], styles: list[Style]) -> Figure | None:
    """TA against the AUC (Indisc in a cell without audit), None where no entry has both."""
    audited = any(entry.row[LEAKAGE] is not None for entry in entries)
    key = LEAKAGE if audited else "indisc"
    points = [
        _point(entry.row, key, style)
        for entry, style in zip(entries, styles, strict=True)
        if entry.row["ta"] is not None and entry.row[key] is not None
    ]
    if not points:
        return None
    retrain = next((entry.row for entry in entries if entry.row["kind"] == "retrain"), {})
    ideal = 0.5 if audited else retrain.get("indisc")
    shapes: list[Figure] = []
    if (ta := retrain.get("ta")) is not None:
        shapes.append({"type": "line", "x0": ta, "x1": ta, "yref": "paper", "y0": 0, "y1": 1})
    if ideal is not None:
        shapes.append({"type": "line", "y0": ideal, "y1": ideal, "xref": "paper", "x0": 0, "x1": 1})
    name = "AUC, forgotten vs retrained" if audited else "Indisc"
    return {
        "data": points,
        "layout": {
            "xaxis": {"title": {"text": "test accuracy (TA)"}},
            "yaxis": {"title": {"text": name}},
            "shapes": [shape | {"line": thin("dot"), "layer": "below"} for shape in shapes],
        },
    }


def _point(row: dict[str, Any], key: str, style: Style) -> Figure:
    color, _, symbol = style
    return {
        "type": "scatter",
        "mode": "markers",
        "name": html.escape(row["label"]),  # plotly reads names as HTML, the legend of the page does not
        "meta": row["label"],
        "x": [row["ta"]],
        "y": [row[key]],
        "error_x": _bar(row, "ta", color),
        "error_y": _bar(row, key, color),
        "marker": {"color": color, "symbol": symbol, "size": 11},
        "hovertemplate": "TA %{x:.3f}, %{y:.3f}",
    }


def _bar(row: dict[str, Any], key: str, color: str) -> Figure:
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    if low is None or high is None:
        return {"visible": False}
    ends = {"array": [high - row[key]], "arrayminus": [row[key] - low]}
    return {"type": "data", "symmetric": False, **ends, "color": color, "thickness": 1.2, "width": 4}
