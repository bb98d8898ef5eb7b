"""The report's section on tuning, by value, from winners' files written by hand."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from orchestrator import report_tuning, tuned
from orchestrator.cells import Cell, Variant
from orchestrator.report import render
from orchestrator.store import Store
from orchestrator.tuned import Place, Winner
from tests.test_report import Synthetic, make_cell

HERE = Place("digits", "cnn_small", "random(fraction=0.4)", "abc")
BETTER: dict[str, Any] = {
    "searched": ["alpha", "learning_rate", "rewind"],
    "origin": "trial 7",
    "objective": "retrain_distance",
    "search_value": 0.0301,
    "tuned": [0.04, 0.06],
    "default": [0.14, 0.18],
    "gain": {"mean": 0.11, "low": 0.01, "high": 0.21},
    "noise_floor": 0.0125,
    "importances": {"alpha": 0.61, "learning_rate": 0.3, "rewind": 0.06, "gamma": 0.03},
    "trials": {"finished": 20, "pruned": 4, "failed": {"diverged": 2}},
}
SAME = BETTER | {
    "searched": ["epochs"],
    "origin": "default",
    "search_value": None,
    "tuned": [0.02, 0.04],
    "default": [0.02, 0.04],
    "gain": {"mean": 0.0, "low": 0.0, "high": 0.0},
    "importances": None,
    "trials": {"finished": 12, "pruned": 0, "failed": {}},
}
BETTER_VALUES = {"alpha": 0.5, "learning_rate": 0.06, "rewind": True}
WINNERS = [
    Winner("scrub", 1, {"alpha": 0.123456, "learning_rate": 0.06, "rewind": True, "gamma": 1.0}, BETTER),
    Winner("finetune", 1, {"epochs": 4, "learning_rate": 0.1}, SAME),
]
TABLE = [
    ["Method", "Tuned", "Default", "Gain", "Ahead of NG+", "Best of search", "Noise floor", "From", "Trials",
     "Importance", "Values"],
    ["FT", "0.030", "0.030", "0.000 [0.000, 0.000]", "n/a", "n/a", "0.013", "default", "12", "", "epochs=4"],
    ["SCRUB", "0.050", "0.160", "0.110 [0.010, 0.210]", "n/a", "0.030", "0.013", "trial 7",
     "20 (4 pruned, 2 diverged)", "alpha 0.61, learning_rate 0.30, rewind 0.06",
     "alpha=0.123, learning_rate=0.06, rewind=True"],
]  # fmt: skip


class Tables(HTMLParser):
    """The texts of all cells of the tables in an element with an id."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.inside, self.open = name, False, False
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "section":
            self.inside = ("id", self.name) in attributes
        elif self.inside and tag == "tr":
            self.rows.append([])
        elif self.inside and tag in ("th", "td"):
            self.rows[-1].append("")
            self.open = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td"):
            self.open = False

    def handle_data(self, data: str) -> None:
        if self.open and self.inside:
            self.rows[-1][-1] += data


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Synthetic:
    monkeypatch.setattr(tuned, "SHIPPED", tmp_path / "shipped")
    store = Synthetic(tmp_path / "results")
    tuned.write(store.store, HERE, WINNERS)
    return store


def shown(made: Synthetic, form: str) -> str:
    text = render(Store.open(str(made.folder)), form)
    assert isinstance(text, str)
    return text


def test_markdown_has_a_row_for_each_winner(made: Synthetic) -> None:
    section = shown(made, "md").split("## Tuning\n")[1].split("\n## ")[0]
    assert tuned.RULE in section
    assert "### digits · cnn_small · random(fraction=0.4)" in section
    assert (
        "1 of 2 winners are better than the default on fresh seeds, 1 of them with the whole interval."
        " Objective: retrain_distance. Training abc." in section
    )
    lines = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == TABLE
    assert "- **Noise floor**: mean objective of a retrain against that of another seed" in section


def test_html_has_the_same_table(made: Synthetic) -> None:
    page = shown(made, "html")
    parser = Tables("tuning")
    parser.feed(page)
    assert [row for row in parser.rows if row] == TABLE
    assert tuned.RULE.replace("'", "&#39;") in page


def test_cells_stay_as_they_are_beside_it_and_rows_for_scripts_too(made: Synthetic) -> None:
    made.remember(make_cell("finetune"))
    text = shown(made, "md")
    assert text.index("\n## digits · cnn_small") < text.index("\n## Tuning\n")
    tuned_rows = json.loads(shown(made, "json"))
    (made.folder / "tuned" / HERE.file).unlink()
    assert json.loads(shown(made, "json")) == tuned_rows
    for form in ("md", "html"):
        assert "Tuning" not in shown(made, form)


def test_shipped_winners_are_shown_where_a_cell_used_them(
    made: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (made.folder / "tuned").rename(tmp_path / "shipped")
    store = Store.open(str(made.folder))
    assert len(tuned.known(store)) == 2

    def cell(*variants: Variant, forget: str = HERE.forget) -> Cell:
        return Cell("c", "digits", "cnn_small", forget, 0, {}, {}, list(variants))

    used = Variant("scrub", 1, dict(WINNERS[0].hyperparameters) | {"augment": False}, {})
    other = Variant("scrub", 1, dict(WINNERS[0].hyperparameters) | {"alpha": 0.5}, {})
    assert report_tuning.sections(store, []) == []
    assert report_tuning.sections(store, [cell(other), cell(used, forget="random(fraction=0.1)")]) == []
    (section,) = report_tuning.sections(store, [cell(other, used)])
    assert [row["label"] for row in section.rows] == ["SCRUB"]


def test_winners_without_facts_are_not_shown(made: Synthetic) -> None:
    tuned.write(made.store, HERE, [Winner(name, 1, {}) for name in ("scrub", "finetune")])
    assert "Tuning" not in shown(made, "md")


def test_tuned_methods_are_compared_with_tuned_neggrad_plus_seed_by_seed() -> None:
    """0.01 and 0.03 ahead: 0.02 ± 12.706 · 0.01, of two seeds. Other seeds or another objective: no value."""
    baseline = Winner("neggrad_plus", 1, BETTER_VALUES, BETTER | {"tuned": [0.05, 0.09]})
    few = Winner("finetune", 1, {"epochs": 4, "learning_rate": 0.1}, SAME | {"tuned": [0.01]})
    other = Winner("salun", 1, BETTER_VALUES, BETTER | {"objective": "paper"})
    winners = {(HERE, w.method, 1): w for w in (baseline, few, other, WINNERS[0])}
    [(_, rows)] = report_tuning.tables(winners)
    leads = {row["method"]: (row["lead"], row["lead_low"], row["lead_high"]) for row in rows}
    nothing = (None, None, None)
    assert leads.pop("scrub") == pytest.approx((0.02, 0.02 - 0.12706, 0.02 + 0.12706), abs=1e-5)
    assert leads == {"neggrad_plus": nothing, "finetune": nothing, "salun": nothing}
