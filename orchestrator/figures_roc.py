"""ROC figures as plotly JSON, on log and on probit axes (spec: attacks, log–log ROC).

Two Gaussian worlds d apart give the straight line Φ⁻¹(TPR) = Φ⁻¹(FPR) + d on probit axes, where μ-GDP allows
no test above Φ⁻¹(FPR) + μ (Dong, Roth and Su 2022, arXiv:1905.02383). Lines are steps: nothing is smoothed.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scipy.special import ndtri

SMALLEST_FPR = 1e-5
RESOLVED = 10  # false positives behind the smallest rate worth reading
FEW = 6  # curves whose bands can be told apart; the bands of more are fainter
MU = (0.0, 0.5, 1.0, 2.0)
PROBIT_TICKS = (1e-5, 1e-4, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
RIGHT_END = (
    0.975  # of the probit FPR axis: the last point of a curve lies at .91, names of lines stand beyond
)

Figure = dict[str, Any]
Style = tuple[str, str, str]  # colour, dash, symbol
Curve = tuple[str, Style, dict[str, Any]]  # label, style, row of audits


@dataclass(frozen=True)
class Scale:
    """How rates become coordinates, and the rates in between which they are shown."""

    at: Callable[[float], float]
    lowest: float
    highest: float


def log_log(curves: list[Curve]) -> Figure:
    """The curves on log axes, with the diagonal."""
    lowest = _lowest(curves)
    return {
        "data": _traces(curves, Scale(float, lowest, 1.0)),
        "layout": _log_layout(lowest, _resolved(curves)),
    }


def probit(curves: list[Curve]) -> Figure:
    """The curves at Φ⁻¹ of their rates, with the lines of μ-GDP."""
    lowest = _lowest(curves)
    scale = Scale(lambda rate: float(ndtri(rate)), lowest, 1 - lowest)
    data = _traces(curves, scale)
    for trace, (_, _, curve) in zip(data[-len(curves) :], curves, strict=True):
        rates = [_points(curve, name, scale) for name in ("roc_fpr", "roc_tpr")]
        trace["customdata"] = [[_short(x), _short(y)] for (_, x), (_, y) in zip(*rates, strict=True)]
        trace["hovertemplate"] = "FPR %{customdata[0]:.4f}, TPR %{customdata[1]:.4f}"
    return {"data": data, "layout": _probit_layout(scale, _resolved(curves))}


def thin(dash: str) -> Figure:
    """The line of a reference."""
    return {"width": 1, "dash": dash, "color": "#8a8a8a"}


def _lowest(curves: list[Curve]) -> float:
    most: int = max(curve["n_negative"] for _, _, curve in curves)
    return min(max(1 / most, SMALLEST_FPR), 0.1)


def _resolved(curves: list[Curve]) -> float:
    least: int = min(curve["n_negative"] for _, _, curve in curves)
    return min(RESOLVED / least, 1.0)


# ---- curves and bands --------------------------------------------------------------------------------------


def _traces(curves: list[Curve], scale: Scale) -> list[Figure]:
    """All bands, two traces each, then all lines."""
    alpha = 0.13 if len(curves) <= FEW else 0.04
    bands = [trace for label, style, curve in curves for trace in _band(label, style[0], curve, scale, alpha)]
    return bands + [_line(label, style, curve, scale) for label, style, curve in curves]


def _line(label: str, style: Style, curve: dict[str, Any], scale: Scale) -> Figure:
    points = _points(curve, "roc_tpr", scale)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [_short(scale.at(x)) for x, _ in points],
        # neither axis has a zero; a rate of 1 lies on the upper edge
        "y": [_short(scale.at(min(y, scale.highest))) if y > 0 else None for _, y in points],
        "name": html.escape(label),
        "meta": label,
        "line": {"shape": "hv", "color": style[0], "dash": style[1], "width": 2},
        "hovertemplate": "FPR %{x:.4f}, TPR %{y:.4f}",
    }


def _band(label: str, color: str, curve: dict[str, Any], scale: Scale, alpha: float) -> list[Figure]:
    common = {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "showlegend": False}
    common |= {"meta": label, "line": {"shape": "hv", "width": 0, "color": color}}
    ends = []
    for name in ("roc_low", "roc_high"):
        points = _points(curve, name, scale)
        inside = [min(max(y, scale.lowest), scale.highest) for _, y in points]
        ends.append(
            {
                **common,
                "x": [_short(scale.at(x)) for x, _ in points],
                "y": [_short(scale.at(y)) for y in inside],
            }
        )
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    ends[1] |= {"fill": "tonexty", "fillcolor": f"rgba({red},{green},{blue},{alpha})"}
    return ends


def _points(curve: dict[str, Any], name: str, scale: Scale) -> list[tuple[float, float]]:
    """(FPR, rate) of the part of a curve that is shown."""
    pairs = zip(curve["roc_fpr"], curve[name], strict=True)
    return [(x, y) for x, y in pairs if scale.lowest * 0.9 <= x <= scale.highest and math.isfinite(y)]


# ---- layouts -----------------------------------------------------------------------------------------------


def _log_layout(lowest: float, resolved: float) -> Figure:
    axis = {"type": "log", "range": [math.log10(lowest), 0.02], "dtick": 1, "exponentformat": "power"}
    diagonal = {"type": "line", "x0": lowest, "x1": 1, "y0": lowest, "y1": 1, "line": thin("dash")}
    return {
        "xaxis": {**axis, "title": {"text": "false-positive rate"}},
        "yaxis": {**axis, "title": {"text": "true-positive rate"}},
        "shapes": [*_unresolved(lowest, resolved), diagonal],
        "annotations": [_resolved_label(resolved, math.log10(resolved))],
    }


def _probit_layout(scale: Scale, resolved: float) -> Figure:
    left, top, right = (scale.at(rate) for rate in (scale.lowest, scale.highest, RIGHT_END))
    right = min(right, top)
    shown = [rate for rate in PROBIT_TICKS if scale.lowest <= rate <= scale.highest]
    names = [f"{rate:.5f}".rstrip("0") for rate in shown]
    axis = {"tickvals": [_short(scale.at(rate)) for rate in shown], "ticktext": names}
    edge = scale.at(min(resolved, RIGHT_END, scale.highest))
    bounds = [mu for mu in MU if left + mu < top]
    return {
        "xaxis": {**axis, "range": [left, right], "title": {"text": "false-positive rate (probit)"}},
        "yaxis": {**axis, "range": [left, top + 0.05], "title": {"text": "true-positive rate (probit)"}},
        "shapes": [*_unresolved(left, edge), *(_gdp_line(mu, left, right, top) for mu in bounds)],
        "annotations": [_resolved_label(resolved, edge), *(_gdp_name(mu, right, top) for mu in bounds)],
    }


def _gdp_end(mu: float, right: float, top: float) -> tuple[float, float]:
    """Where Φ⁻¹(TPR) = Φ⁻¹(FPR) + μ, the most that a test against μ-GDP can reach, leaves the panel."""
    end = min(right, top - mu)
    return end, end + mu


def _gdp_line(mu: float, left: float, right: float, top: float) -> Figure:
    x, y = _gdp_end(mu, right, top)
    ends = {"x0": left, "y0": left + mu, "x1": x, "y1": y}
    return {"type": "line", **ends, "line": thin("dash" if mu == 0 else "dot"), "layer": "below"}


def _gdp_name(mu: float, right: float, top: float) -> Figure:
    """The name of such a line, above its end."""
    x, y = _gdp_end(mu, right, top)
    name = {"text": f"μ = {mu:g}", "x": x, "y": y, "showarrow": False, "font": {"size": 11}}
    return name | {"xanchor": "right", "yanchor": "bottom" if y < top else "top"}


def _unresolved(left: float, edge: float) -> list[Figure]:
    """The region in which too few false positives stand behind a rate, and its end."""
    whole = {"yref": "paper", "y0": 0, "y1": 1}
    shade = {"fillcolor": "rgba(128,128,128,0.14)", "line": {"width": 0}, "layer": "below"}
    return [
        {"type": "rect", "x0": left, "x1": edge, **whole, **shade},
        {"type": "line", "x0": edge, "x1": edge, **whole, "line": thin("dot")},
    ]


def _resolved_label(resolved: float, x: float) -> Figure:
    label = {"text": f"10/n₀ = {resolved:.2g}", "x": x, "y": 0.02, "yref": "paper", "font": {"size": 11}}
    side = "left" if resolved < 0.1 else "right"
    return label | {"xanchor": side, "yanchor": "bottom", "showarrow": False}


def _short(value: float) -> float:
    return float(f"{value:.4g}")
