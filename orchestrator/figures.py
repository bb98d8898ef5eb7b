"""The figures of the HTML report as plotly JSON: ROC curves on log axes, and utility against leakage.

They are written without plotly's Python objects: a figure is data and a layout. Colours of text and grid are
set in the page, where light or dark is known.
"""

from __future__ import annotations

import html
import json
import math
from typing import Any

from orchestrator.report_audit import COMPARISONS
from orchestrator.report_rows import LEAKAGE, CellReport, Entry

# Six colours of Okabe and Ito that read on white and on black (https://jfly.uni-koeln.de/color/); with three
# dashes and three symbols they tell 18 methods apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dot")
SYMBOLS = ("circle", "square", "diamond")
REFERENCES = {"base": ("#7d7d7d", "dashdot", "x"), "retrain": ("#7d7d7d", "solid", "star")}
NAMES = {
    "forgotten_vs_retrained": "forgotten vs retrained",
    "forgotten_vs_never": "forgotten vs never seen",
    "fingerprint": "fingerprint",
}
SMALLEST_FPR = 1e-5
FEW = 6  # curves whose bands can be told apart; the bands of more are fainter
RESOLVED = 10  # false positives behind the smallest rate worth reading

Figure = dict[str, Any]


def plotly_js() -> str:
    """The source of plotly.js, to be inlined."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def of_cell(cell: CellReport) -> list[dict[str, Any]]:
    """The figures of a cell: title, note, and named views as JSON that is safe inside a script element."""
    styles = _styles(cell.entries)
    found = []
    if views := [(NAMES[name], roc) for name in COMPARISONS if (roc := _roc(cell.entries, styles, name))]:
        note = (
            "Steps with pointwise 95 % bands; the dashed diagonal is guessing. In the shaded region fewer"
            f" than {RESOLVED} false positives stand behind a rate."
        )
        found.append(_packed("roc", "ROC of U-LiRA", note, views))
    if scatter := _scatter(cell.entries, styles):
        note = "Dotted lines: retraining. A method should lie where they cross. Bars are 95 % intervals."
        found.append(_packed("scatter", "Utility against leakage", note, [("all", scatter)]))
    return found


def _packed(kind: str, title: str, note: str, views: list[tuple[str, Figure]]) -> dict[str, Any]:
    text = json.dumps([figure for _, figure in views], allow_nan=False, separators=(",", ":"))
    safe = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return {"kind": kind, "title": title, "note": note, "views": [name for name, _ in views], "json": safe}


def _styles(entries: list[Entry]) -> list[tuple[str, str, str]]:
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


# ---- ROC ---------------------------------------------------------------------------------------------------


def _roc(entries: list[Entry], styles: list[tuple[str, str, str]], comparison: str) -> Figure | None:
    """One curve and band per entry that has the comparison, None if none has."""
    curves = [
        (entry.row["label"], style, entry.curves[comparison])
        for entry, style in zip(entries, styles, strict=True)
        if entry.curves.get(comparison, {}).get("roc_fpr") is not None
    ]
    if not curves:
        return None
    sizes = [curve["n_negative"] for _, _, curve in curves]
    floor = min(max(1 / max(sizes), SMALLEST_FPR), 0.1)
    resolved = min(RESOLVED / min(sizes), 1.0)
    alpha = 0.13 if len(curves) <= FEW else 0.04
    bands = [trace for label, style, curve in curves for trace in _band(label, style[0], curve, floor, alpha)]
    lines = [_line(label, style, curve, floor) for label, style, curve in curves]
    return {"data": bands + lines, "layout": _roc_layout(floor, resolved)}


def _line(label: str, style: tuple[str, str, str], curve: dict[str, Any], floor: float) -> Figure:
    x, y = _points(curve, "roc_tpr", floor)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": [value if value > 0 else None for value in y],  # a log axis has no zero
        "name": html.escape(label),
        "meta": label,
        "line": {"shape": "hv", "color": style[0], "dash": style[1], "width": 2},
        "hovertemplate": "FPR %{x:.4f}, TPR %{y:.4f}",
    }


def _band(label: str, color: str, curve: dict[str, Any], floor: float, alpha: float) -> list[Figure]:
    common = {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "showlegend": False}
    common |= {"meta": label, "line": {"shape": "hv", "width": 0, "color": color}}
    ends = []
    for name in ("roc_low", "roc_high"):
        x, y = _points(curve, name, floor)
        ends.append({**common, "x": x, "y": [max(value, floor) for value in y]})
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    ends[1] |= {"fill": "tonexty", "fillcolor": f"rgba({red},{green},{blue},{alpha})"}
    return ends


def _points(curve: dict[str, Any], name: str, floor: float) -> tuple[list[float], list[float]]:
    """The part of a curve right of the left end of the axis, four digits each."""
    pairs = zip(curve["roc_fpr"], curve[name], strict=True)
    kept = [(x, y) for x, y in pairs if x >= floor * 0.9 and math.isfinite(y)]
    return [_short(x) for x, _ in kept], [_short(y) for _, y in kept]


def _roc_layout(floor: float, resolved: float) -> Figure:
    span = [math.log10(floor), 0.02]
    axis = {"type": "log", "range": span, "dtick": 1, "exponentformat": "power"}
    whole = {"yref": "paper", "y0": 0, "y1": 1}
    shapes = [
        {"type": "rect", "x0": floor, "x1": resolved, **whole, "fillcolor": "rgba(128,128,128,0.14)"}
        | {"line": {"width": 0}, "layer": "below"},
        {"type": "line", "x0": resolved, "x1": resolved, **whole, "line": _thin("dot")},
        {"type": "line", "x0": floor, "x1": 1, "y0": floor, "y1": 1, "line": _thin("dash")},
    ]
    label = {"text": f"10/n₀ = {resolved:.2g}", "x": math.log10(resolved), "y": 0.02, "yref": "paper"}
    label |= {"xanchor": "left" if resolved < 0.1 else "right", "yanchor": "bottom", "showarrow": False}
    return {
        "xaxis": {**axis, "title": {"text": "false-positive rate"}},
        "yaxis": {**axis, "title": {"text": "true-positive rate"}},
        "shapes": shapes,
        "annotations": [label | {"font": {"size": 11}}],
    }


# ---- utility against leakage -------------------------------------------------------------------------------


def _scatter(entries: list[Entry], styles: list[tuple[str, str, str]]) -> Figure | None:
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
            "shapes": [shape | {"line": _thin("dot"), "layer": "below"} for shape in shapes],
        },
    }


def _point(row: dict[str, Any], key: str, style: tuple[str, str, str]) -> Figure:
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


def _thin(dash: str) -> Figure:
    return {"width": 1, "dash": dash, "color": "#8a8a8a"}


def _short(value: float) -> float:
    return float(f"{value:.4g}")
