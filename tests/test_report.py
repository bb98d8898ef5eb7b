"""The report against numbers worked out by hand on small synthetic stores, and its five forms."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from orchestrator import audit, plans, report, report_audit, report_rank, report_rows
from orchestrator.config import Grid
from orchestrator.errors import without_keys
from orchestrator.plan import Cell, Plan, Variant
from orchestrator.report import render
from orchestrator.report_rank import MARKED, OVER_FORGETS, UTILITY_LOST
from orchestrator.store import Store, score_folder, score_rows
from workers.designs import FORGET, OUT, RETAIN, VAL, pack

RETAINED, FORGOTTEN, VALIDATION, TEST = 50, 40, 10, 40
OPTIONAL = [column for column in report.COLUMNS if column.optional]  # shown where some row has a value
POOL = RETAINED + FORGOTTEN + VALIDATION
STATES = np.repeat([RETAIN, FORGET, VAL], [RETAINED, FORGOTTEN, VALIDATION]).astype(np.uint8)
T_95 = {2: 12.706204736, 3: 4.302652730}  # 0.975 quantile of Student's t for n seeds, from a printed table
GRID = {
    "name": "made",
    "datasets": ["digits"],
    "architectures": ["cnn_small"],
    "forget": [{"random": {"fraction": 0.2}}],
    "methods": ["finetune"],
    "seeds": 2,
}


class Synthetic:
    """A store under construction; every run is put in by its measured values."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store.create(str(folder))
        self.parts = 0

    def part(self) -> str:
        self.parts += 1
        return f"{self.parts:014d}-00000000"

    def design(self, name: str, states: np.ndarray) -> None:
        row = {"design": name, "dataset": "digits", "n_pool": len(states), "states": pack(states)}
        self.store.write_part("designs", [row], self.part())

    def run(self, task: str, kind: str, *, phi: np.ndarray | None = None, **columns: Any) -> None:
        part = self.part()
        facts = {"task_id": task, "kind": kind, "status": "done", "attempt": 1, "part": part, "method": ""}
        facts |= {"dataset": "digits", "architecture": "cnn_small", "design": "main", "track": "main"}
        facts |= {"commit": "abc", "device": "cpu", "versions": '{"lethe":"0.1.0"}'} | columns
        if phi is not None:
            correct = facts.pop("correct", phi > 0)
            folder = score_folder("digits", facts["architecture"], kind, facts["method"])
            self.store.write_part("scores", list(score_rows(task, phi, correct)), part, folder)
        self.store.write_part("runs", [facts], part)

    def remember(self, *cells: Cell) -> None:
        plans.remember(self.store, Plan(Grid.model_validate(GRID), [], list(cells)))

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(render(Store.open(str(self.folder)), "json"))
        return rows


def make_cell(*methods: str, seeds: int = 2, name: str = "c1", forget: str = "random(fraction=0.4)") -> Cell:
    keys = [("main", seed, 0) for seed in range(seeds)]
    variants = [Variant(m, 1, {"epochs": 5}, {key: f"{name}-{m}-{key[1]}" for key in keys}) for m in methods]
    bases, retrains = ({key: f"{name}-{kind}-{key[1]}" for key in keys} for kind in ("base", "retrain"))
    return Cell(name, "digits", "cnn_small", forget, 1, bases, retrains, variants)


def scores(forget_phi: float, test_phi: float = -5.0) -> np.ndarray:
    """φ of a model that is constant on the retain, forget and test set."""
    parts = [(3.0, RETAINED), (forget_phi, FORGOTTEN), (0.0, VALIDATION), (test_phi, TEST)]
    return np.concatenate([np.full(size, value, dtype=np.float32) for value, size in parts])


@pytest.fixture
def made(tmp_path: Path) -> Synthetic:
    """Two seeds of base, retrain and finetune with round numbers."""
    store = Synthetic(tmp_path / "made results")
    store.design("main", STATES)
    store.remember(make_cell("finetune"))
    correct = np.ones(POOL + TEST, dtype=bool)
    correct[:10] = False  # 40 of 50 retained, 36 of 40 forgotten samples are right
    correct[RETAINED : RETAINED + 4] = False
    for seed, base_ta in enumerate((0.8, 0.9)):
        phi = scores(4.0)
        store.run(
            f"c1-base-{seed}", "base", phi=phi, correct=correct, ra=0.1, va=0.7, ta=base_ta, wall_s=30.0
        )
    retrains = [
        {"ra": 0.8, "fa": 0.5, "va": 0.6, "ta": 0.5, "wall_s": 10.0},
        {"ra": 1.0, "fa": 0.8, "va": 0.8, "ta": 0.8, "wall_s": 20.0},
    ]
    methods = [
        {"ra": 0.6, "fa": 1.0, "va": 0.5, "ta": 0.45, "wall_s": 2.0},
        {"ra": 0.9, "fa": 0.6, "va": 0.7, "ta": 0.80, "wall_s": 10.0},
    ]
    for seed in (0, 1):
        store.run(f"c1-retrain-{seed}", "retrain", phi=scores(-5.0), **retrains[seed])
        # seed 0 tells forgotten from test samples perfectly, seed 1 not at all
        store.run(
            f"c1-finetune-{seed}",
            "unlearn",
            method="finetune",
            phi=scores((5.0, -5.0)[seed]),
            **methods[seed],
        )
    return store


def close(value: Any) -> Any:
    return pytest.approx(value, abs=1e-9)


# ---- numbers ---------------------------------------------------------------------------------------------


def test_ret_dev_and_rte_compare_each_seed_with_its_own_retrain(made: Synthetic) -> None:
    row = made.rows()[2]
    dev = [0.25 + 1.0 + 0.1, 0.1 + 0.25 + 0.0]  # |RA/RA_R - 1| + |FA/FA_R - 1| + |TA/TA_R - 1|
    half = T_95[2] * abs(dev[0] - dev[1]) / 2
    assert row["ret_dev"] == close(0.85)
    assert row["ret_dev_high"] - row["ret_dev"] == pytest.approx(half, rel=1e-7)
    assert row["ret_dev"] - row["ret_dev_low"] == pytest.approx(half, rel=1e-7)
    assert row["rte"] == close((10 / 2 + 20 / 10) / 2)  # not the ratio of the means
    assert row["rte_high"] == pytest.approx(3.5 + T_95[2] * 3 / 2, rel=1e-7)
    assert row["wall_s"] == close(6.0)
    assert (row["n"], row["ra"], row["fa"], row["va"]) == (2, close(0.75), close(0.8), close(0.6))


def test_references_come_first_and_a_base_is_scored_on_the_cells_forget_set(made: Synthetic) -> None:
    base, retrain, method = made.rows()
    assert [row["method"] for row in (base, retrain, method)] == ["base", "retrain", "finetune"]
    assert (base["ra"], base["fa"], base["ta"]) == (close(0.8), close(0.9), close(0.85))
    dev = [abs(0.8 / 0.8 - 1) + abs(0.9 / 0.5 - 1) + abs(0.8 / 0.5 - 1), 0.2 + 0.1 / 0.8 + 0.1 / 0.8]
    assert base["ret_dev"] == close(sum(dev) / 2)
    assert base["rte"] is None and base["rte_low"] is None
    assert (retrain["ret_dev"], retrain["rte"]) == (close(0), close(1))
    assert base["hyperparameters"] is None and method["hyperparameters"] == {"epochs": 5}


def test_indisc_is_the_mean_over_seeds_next_to_that_of_retraining(made: Synthetic) -> None:
    base, retrain, method = made.rows()
    assert base["indisc"] == close(0)  # loss far lower on forgotten than on test samples
    assert retrain["indisc"] == close(1)
    assert method["indisc"] == close(0.5)
    assert method["indisc_retrain"] == close(1)
    assert method["indisc_high"] == pytest.approx(0.5 + T_95[2] / 2, rel=1e-7)


def test_three_seeds_have_the_interval_of_two_degrees_of_freedom(tmp_path: Path) -> None:
    made = Synthetic(tmp_path / "r")
    made.remember(make_cell("finetune", seeds=3))
    for seed, ta in enumerate((0.5, 0.6, 0.7)):
        made.run(f"c1-retrain-{seed}", "retrain", ra=1.0, fa=1.0, ta=ta, wall_s=1.0, design="none")
    made.design("none", STATES)
    row = made.rows()[1]
    assert row["ta"] == close(0.6)
    assert row["ta_high"] == pytest.approx(0.6 + T_95[3] * 0.1 / 3**0.5, rel=1e-7)


def test_audit_of_two_worlds_apart_has_auc_one(tmp_path: Path) -> None:
    made = Synthetic(tmp_path / "r")
    cell = _audited(made)
    made.remember(cell)
    base, retrain, method = made.rows()
    assert method["auc_forgotten_vs_retrained"] == close(1)
    assert 0.3 < retrain["auc_forgotten_vs_retrained"] < 0.7
    assert method["pairs"] == 4 and method["n_positive"] == method["n_positive_forgotten_vs_retrained"] == 160
    assert method["tpr_forgotten_vs_retrained_at_1pct"] is None  # 160 negatives cannot resolve 1 %
    assert method["audit_missing"] == 0 and base["auc_fingerprint"] is None and base["missing"] == 8
    assert method["n"] == 0 and method["rank"] is None
    page = render(made.store, "html")
    assert page.count('data-kind="roc"') == 1 and page.count("plotly.js v") == 1


def _audited(made: Synthetic) -> Cell:
    """Four pairs of halves of a pool of 40, one forget set each; the method lifts φ where it forgot."""
    generator = np.random.default_rng(0)
    half = np.arange(40) % 2 == 0
    keys = [("audit", base, index) for base in range(8) for index in (0, 1)]
    maps = [{key: f"{kind}-{key[1]}-{key[2]}" for key in keys} for kind in ("retrain", "unlearn")]
    for base, index in (key[1:] for key in keys):
        members = half if base % 2 == 0 else ~half
        forgotten = members & (np.arange(40) // 20 == index)
        states = np.where(forgotten, FORGET, np.where(members, RETAIN, OUT)).astype(np.uint8)
        made.design(f"d{base}-{index}", states)
        facts = {"design": f"d{base}-{index}", "track": "audit", "ra": 1.0, "fa": 1.0, "ta": 1.0}
        noise = generator.normal(size=(2, 60)).astype(np.float32)
        lifted = noise[1] + np.concatenate([40 * forgotten, np.zeros(20)]).astype(np.float32)
        made.run(f"retrain-{base}-{index}", "retrain", phi=noise[0], **facts)
        made.run(f"unlearn-{base}-{index}", "unlearn", method="finetune", phi=lifted, **facts)
    bases = {key: f"base-{key[1]}" for key in keys}
    return Cell(
        "a1", "digits", "cnn_small", "random()", 2, bases, maps[0], [Variant("finetune", 1, {}, maps[1])]
    )


# ---- rank and flags --------------------------------------------------------------------------------------


def _row(name: str, ret_dev: float | None, auc: float | None, **more: Any) -> dict[str, Any]:
    row = {"kind": "unlearn", "method": name, "n": 2, "rank": None, "ret_dev": ret_dev, "flags": []}
    row |= {"auc_forgotten_vs_retrained": auc, "auc_forgotten_vs_retrained_high": None}
    row |= {"auc_fingerprint_low": None, "auc_fingerprint_high": None, "wall_s": 1.0}
    return row | {"ef": None, "indisc": None, "indisc_retrain": 0.9, "below_retrain": 0.0} | more


def _order(*rows: dict[str, Any]) -> list[str]:
    report_rank.rank(list(rows))
    return [row["method"] for row in sorted(rows, key=lambda row: row["rank"] or 99) if row["rank"]]


def test_rank_is_the_mean_of_two_ranks_with_ties_by_ret_dev() -> None:
    a, b, c = _row("a", 0.3, 0.51), _row("b", 0.1, 0.60), _row("c", 0.2, 0.80)
    assert _order(a, b, c) == ["b", "a", "c"]  # mean ranks 2.0, 1.5, 2.5
    assert _order(_row("x", 0.2, 0.5), _row("y", 0.1, 0.6)) == ["y", "x"]  # equal means, y deviates less
    assert _order(_row("below", 0.1, 0.40), _row("above", 0.2, 0.55)) == ["below", "above"]  # distance counts


def test_unknown_values_rank_last_and_no_run_has_no_rank() -> None:
    assert _order(_row("u", None, None), _row("k", 0.9, 0.9), _row("z", None, None, n=0)) == ["k", "u"]


def test_without_audit_the_distance_of_indisc_from_retraining_counts() -> None:
    near, far = _row("near", 0.2, None, indisc=0.88), _row("far", 0.2, None, indisc=1.0)
    assert _order(far, near) == ["near", "far"]


def test_where_classes_were_forgotten_without_audit_ret_dev_alone_counts() -> None:
    """Indisc on the few test samples of a class is mostly noise."""
    near, far = (_row(n, d, None, ef=1.0, indisc=i) for n, d, i in (("near", 0.1, 0.2), ("far", 0.2, 0.9)))
    assert _order(far, near) == ["near", "far"]


def test_utility_is_a_r_where_whole_classes_were_forgotten() -> None:
    """A method that forgot nothing has more TA than a retrain without half of the classes."""
    names = dict.fromkeys(("ra", "fa", "wall_s"), 1.0)
    retrain, method = names | {"ta": 0.49, "ar": 0.98}, names | {"ta": 0.69, "ar": 0.79}
    assert report_rows._against(method, retrain, "unlearn")["lost"] == pytest.approx(0.19)
    plain = [values | {"ar": None} for values in (method, retrain)]
    assert report_rows._against(*plain, "unlearn")["lost"] == pytest.approx(-0.2)


def test_lost_utility_ranks_after_all_others() -> None:
    lost = _row("lost", 0.0, 0.5, flags=[UTILITY_LOST])
    assert _order(lost, _row("kept", 3.0, 0.9)) == ["kept", "lost"]


@pytest.mark.parametrize(
    ("below", "auc", "high", "flags"),
    [
        (0.11, 0.6, 0.7, [UTILITY_LOST]),
        (0.09, 0.45, 0.49, [OVER_FORGETS]),
        (None, 0.45, 0.51, []),
        (0.2, 0.3, 0.4, [UTILITY_LOST, OVER_FORGETS]),
    ],
)
def test_flags(below: float | None, auc: float, high: float, flags: list[str]) -> None:
    row = _row("a", 0.1, auc, below_retrain=below, auc_forgotten_vs_retrained_high=high)
    assert report_rank.flags(row) == flags
    assert report_rank.flags(row | {"kind": "base"}) == []


@pytest.mark.parametrize(
    ("low", "high", "marked"), [(0.61, 0.9, True), (0.59, 0.9, False), (0.1, 0.39, True), (0.3, 0.41, False)]
)
def test_a_fingerprint_far_from_one_half_is_a_mark(low: float, high: float, marked: bool) -> None:
    row = _row("a", 0.1, 0.6, auc_fingerprint_low=low, auc_fingerprint_high=high)
    assert report_rank.flags(row) == [MARKED] * marked


def test_the_pareto_front_has_whom_none_beats() -> None:
    best, slower = (
        _row("a", 0.1, 0.55, below_retrain=0.01),
        _row("b", 0.1, 0.55, below_retrain=0.01, wall_s=2.0),
    )
    cheap = _row("c", 0.1, 0.9, below_retrain=0.02, wall_s=0.1)
    over = _row("d", 0.1, 0.45, below_retrain=-0.3)  # more accurate than retraining is not better than equal
    equal, unknown = _row("e", 0.1, 0.45, below_retrain=0.0), _row("f", 0.1, None)
    rows = [best, slower, cheap, over, equal, unknown]
    report_rank.rank(rows)
    assert [row["pareto"] for row in rows] == ["no", "no", "yes", "yes", "yes", None]


def test_a_method_far_below_its_retrain_is_flagged_in_every_table(tmp_path: Path) -> None:
    made = Synthetic(tmp_path / "r")
    made.design("main", STATES)
    made.remember(make_cell("finetune", "gradient_ascent", seeds=1))
    made.run("c1-retrain-0", "retrain", ra=1.0, fa=0.9, ta=0.9, wall_s=1.0)
    made.run("c1-finetune-0", "unlearn", method="finetune", ra=0.5, fa=0.1, ta=0.85, wall_s=1.0)
    made.run("c1-gradient_ascent-0", "unlearn", method="gradient_ascent", ra=1.0, fa=0.9, ta=0.7, wall_s=1.0)
    assert [(row["method"], row["rank"], row["flags"]) for row in made.rows()[2:]] == [
        ("finetune", 1, []),
        ("gradient_ascent", 2, [UTILITY_LOST]),
    ]
    for format in ("md", "csv", "latex", "html"):
        table = render(made.store, format).partition("How to read the tables")[2 if format == "html" else 0]
        assert UTILITY_LOST in table


# ---- partial results -------------------------------------------------------------------------------------


def test_an_empty_store_renders_in_every_form(tmp_path: Path) -> None:
    store = Store.create(str(tmp_path))
    assert json.loads(render(store, "json")) == []
    assert render(store, "csv") == ""
    assert json.loads(render(store, "card")) == []
    assert pq.read_table(io.BytesIO(render(store, "parquet"))).num_rows == 0
    for format in ("html", "md", "latex"):
        assert render(store, format)
    assert "plotly" not in render(store, "html")


def test_a_plan_without_runs_and_one_with_failures_render(tmp_path: Path) -> None:
    made = Synthetic(tmp_path / "r")
    made.remember(make_cell("finetune", "gradient_ascent"))
    assert [row["missing"] for row in made.rows()] == [2, 2, 2, 2]
    assert all(row["ta"] is None and row["rank"] is None for row in made.rows())
    reason, log = "non-finite | loss\nat step 3", "logs/x-1.txt"
    made.run("c1-finetune-0", "unlearn", method="finetune", status="diverged", reason=reason, log=log)
    made.run("c1-finetune-1", "unlearn", method="finetune", status="oom", reason="8 GiB", ta=float("nan"))
    row = next(row for row in made.rows() if row["method"] == "finetune")
    assert row["failed"] == {"diverged": 1, "oom": 1} and row["missing"] == 0 and row["n"] == 0
    text = render(made.store, "md")
    assert "1 diverged; 1 oom" in text and log in text and r"non-finite \| loss at step 3" in text
    page = render(made.store, "html")
    assert "non-finite | loss" in page and 'class="plot"' not in page


def test_a_seed_without_its_retrain_counts_but_is_not_compared(made: Synthetic) -> None:
    made.run("c1-retrain-1", "retrain", status="bug", attempt=2)
    base, retrain, method = made.rows()
    assert (method["n"], method["ret_dev"], method["ret_dev_low"]) == (2, close(1.35), None)
    assert method["rte"] == close(5) and retrain["n"] == 1 and retrain["failed"] == {"bug": 1}
    assert base["fa"] == close(0.9)  # seed 1 takes the forget set from the method's design


def test_nothing_is_divided_by_zero_and_json_is_strict(tmp_path: Path) -> None:
    made = Synthetic(tmp_path / "r")
    made.design("main", STATES)
    made.remember(make_cell("finetune"))
    for seed in (0, 1):
        made.run(f"c1-retrain-{seed}", "retrain", ra=1.0, fa=0.0, ta=float("nan"), wall_s=5.0)
        made.run(
            f"c1-finetune-{seed}", "unlearn", method="finetune", ra=1.0, fa=0.5, ta=float("inf"), wall_s=0.0
        )
    for text in (render(made.store, "json"), render(made.store, "csv"), render(made.store, "md")):
        assert "NaN" not in text and "Infinity" not in text and "| inf" not in text and ",nan" not in text
    method = made.rows()[2]
    assert (method["ret_dev"], method["rte"], method["ta"], method["fa"]) == (None, None, None, 0.5)


def test_reading_writes_nothing(made: Synthetic) -> None:
    def listing() -> dict[str, tuple[int, int]]:
        stats = {str(path): path.stat() for path in made.folder.rglob("*")}
        return {name: (stat.st_mtime_ns, stat.st_size) for name, stat in stats.items()}

    before = listing()
    for format in report.FORMATS:
        render(Store.open(str(made.folder)), format)
    assert listing() == before


# ---- forms -----------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The tables of a page as lists of rows of cell texts, and every address it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.inside = True
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.tables[-1][-1][-1] += data


def test_html_is_self_contained_with_each_row_once_per_table(made: Synthetic) -> None:
    text = render(made.store, "html")
    page = Page(text)
    assert [a for a in page.addresses if not a.startswith("#")] == [] and "link" not in page.tags
    assert "@import" not in text.partition("</style>")[0] and "url(" not in text.partition("</style>")[0]
    table, further = page.tables
    assert [row[0] for row in further] == ["Method", "Base", "Retrain", "FT"]
    assert [row[1] for row in table[1:]] == ["Base", "Retrain", "FT"]
    assert {len(row) for row in table} == {len(report.COLUMNS) - len(OPTIONAL)}
    assert table[3][0] == "1" and table[3][7].startswith("0.850 ± ") and table[1][9] == "n/a"
    assert text.count("plotly.js v") == 1 and 'data-kind="scatter"' in text and 'data-kind="roc"' not in text
    assert "data:" not in "".join(page.addresses)


def test_nasty_names_are_escaped(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    made = Synthetic(tmp_path / "<b>r & co")
    made.design("main", STATES)
    forget = f"random(note={name}|x_1%)"
    made.remember(make_cell(name, forget=forget, seeds=1))
    made.run("c1-retrain-0", "retrain", ra=1.0, fa=1.0, ta=0.9, wall_s=1.0, phi=scores(-5.0))
    folder = {"phi": scores(4.0), "method": "finetune"}  # the ledger names a folder; the plan the method
    made.run(f"c1-{name}-0", "unlearn", ra=1.0, fa=1.0, ta=0.9, wall_s=1.0, **folder)
    text = render(made.store, "html")
    assert name not in text and "<b>" not in text and "&lt;b&gt;r &amp; co" in text
    assert Page(text).tags.count("script") == 2 + 2  # sorting, plotly, drawing and one figure's data
    assert r"random(note=<script>alert(1)</script>\|x_1%)".replace("<", r"\<") in render(made.store, "md")
    latex = render(made.store, "latex")
    assert r"cnn\_small" in latex and r"\textbar{}x\_1\%" in latex and name not in latex
    assert json.loads(render(made.store, "json"))[2]["method"] == name


def test_csv_has_the_rows_of_json(made: Synthetic) -> None:
    table = list(csv.DictReader(io.StringIO(render(made.store, "csv"))))
    rows = made.rows()
    assert list(table[0]) == list(rows[0]) and len(table) == len(rows)
    assert float(table[2]["ret_dev"]) == close(rows[2]["ret_dev"]) and table[0]["rte"] == ""
    assert json.loads(table[2]["hyperparameters"]) == {"epochs": 5}


def test_parquet_has_the_rows_of_csv_with_types(made: Synthetic) -> None:
    made.run("c1-finetune-1", "unlearn", method="finetune", status="oom", attempt=2)
    content = render(made.store, "parquet")
    assert isinstance(content, bytes)
    table = pq.read_table(io.BytesIO(content))
    assert table.to_pylist() == [report_rows.flat(row) for row in made.rows()]
    types = {name: str(table.schema.field(name).type) for name in ("label", "n", "ta", "rte_low", "failed")}
    assert types == {"label": "string", "n": "int64", "ta": "double", "rte_low": "double", "failed": "string"}
    assert not any(str(field.type) == "null" for field in table.schema), "unknown numbers are numbers"
    assert json.loads(table["failed"][2].as_py()) == {"oom": 1}


def test_exposed_samples_are_listed_up_to_two_hundred(
    made: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = {
        "attack": "ulira",
        "attack_version": 1,
        "comparison": "forgotten_vs_retrained",
        "pairs": 18,
        "auc": 0.6,
    }
    curve |= {"n_negative": 1000, "n_positive": 1000, "samples": 500, "missing": 0}
    curve |= {"exposed_confirmed": 1234, "exposed_ids": list(range(5000, 6234))}
    monkeypatch.setattr(audit, "current", _with(audit.current, curve))
    page = render(made.store, "html")
    shown = page.partition('<p class="ids">')[2].partition("</p>")[0]
    assert shown == f"{', '.join(map(str, range(5000, 5200)))} … the first 200 of 1,234"
    assert "<summary>FT: 1,234</summary>" in page and page.count('<details class="fold exposed">') == 1


def test_a_cell_in_which_no_sample_could_be_singled_out_lists_none(made: Synthetic) -> None:
    assert "Exposed samples" not in render(made.store, "html")


def test_markdown_and_latex_have_one_table_per_cell(made: Synthetic) -> None:
    other = replace(make_cell("finetune", name="c2"), architecture="vit_tiny")
    made.remember(other)
    rows = made.rows()
    assert [row["cell"] for row in rows] == ["c1"] * 3 + ["c2"] * 3
    assert all(row["missing"] == 2 for row in rows[3:])
    markdown = render(made.store, "md")
    assert markdown.count("| # | Method |") == 2 and report.RULE.replace("|", r"\|") in markdown
    main = markdown.partition("###")[0]
    tables = [line for line in main.splitlines() if line.startswith("|")]
    assert len(tables) == 2 + 3 and {line.replace(r"\|", "").count("|") for line in tables} == {
        len(report.COLUMNS) - len(OPTIONAL) + 1
    }
    latex = render(made.store, "latex")
    # The first cell has a further table, of the attacks on one model; the second has no run.
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == latex.count(r"\toprule") == 3
    bare = [line.replace(r"\_", "") for line in latex.splitlines() if not line.startswith("%")]
    assert not any("_" in line for line in bare)
    page = render(made.store, "html")
    assert len(Page(page).tables) == 3 and page.count("plotly.js v") == 1
    assert 'href="#cell-c2"' in page and 'id="cell-c2"' in page


def test_variants_of_a_method_are_told_apart(made: Synthetic) -> None:
    cell = make_cell("finetune")
    cell.variants[0] = replace(cell.variants[0], hyperparameters={"epochs": 7}, tasks={})
    made.remember(cell)
    assert sorted(row["label"] for row in made.rows()[2:]) == ["FT (epochs=5)", "FT (epochs=7)"]


def test_every_json_row_has_the_columns_scripts_rely_on(made: Synthetic) -> None:
    names = ["dataset", "architecture", "forget", "method", "kind", "n", "hyperparameters", "cell", "rank"]
    names += [v + end for v in report_rows.SEEDED for end in ("", "_low", "_high")]
    for c in report_audit.COMPARISONS:
        names += [f"auc_{c}{end}" for end in ("", "_low", "_high")] + [f"n_positive_{c}"]
        names += [f"tpr_{c}_at_{a}{end}" for a in ("1pct", "01pct") for end in ("", "_low", "_high")]
        names += [f"fpr_{c}_at_{a}" for a in ("1pct", "01pct")] + [f"balanced_accuracy_{c}"]
        names += [f"{name}_{c}" for name in ("n_negative", "nu0_positive", "nu0_negative", "collapsed")]
    for row in made.rows():
        assert set(names) <= row.keys()


def test_the_curves_start_where_rates_can_be_resolved(
    made: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    fpr = [1e-5, 1e-3, 1e-2, 0.1, 1.0]
    curve = {"roc_fpr": fpr, "roc_tpr": [0, 0, 0.1, 0.4, 1], "roc_low": [0, 0, 0, 0.3, 1]}
    curve |= {"roc_high": [0.1, 0.1, 0.2, 0.5, 1], "n_negative": 1000, "n_positive": 1000, "samples": 500}
    curve |= {
        "attack": "ulira",
        "attack_version": 1,
        "comparison": "forgotten_vs_retrained",
        "pairs": 8,
        "auc": float("nan"),
    }
    known = audit.current
    monkeypatch.setattr(audit, "current", _with(known, curve))
    (cell,) = report_rows.collect(made.store).cells
    from orchestrator.figures import of_cell

    roc, probit, scatter = of_cell(cell)
    assert [figure["kind"] for figure in (roc, probit, scatter)] == ["roc", "probit", "scatter"]
    (figure,) = json.loads(roc["json"])
    low, high, line = figure["data"]
    assert line["x"] == [1e-3, 1e-2, 0.1, 1.0] and line["y"] == [None, 0.1, 0.4, 1]
    assert low["y"][0] == 1e-3 and high["fill"] == "tonexty"  # a log axis has no zero
    assert figure["layout"]["xaxis"]["range"][0] == pytest.approx(-3)
    assert figure["layout"]["shapes"][0]["x1"] == pytest.approx(10 / 1000)


def _with(known: Callable[..., list[dict[str, Any]]], curve: dict[str, Any]) -> Callable[..., Any]:
    """audit.current with one more row, for finetune."""

    def current(store: Store, cells: list[Cell]) -> list[dict[str, Any]]:
        rows = known(store, cells)
        method = audit.rows_of(cells[0])[2].columns
        return [*rows, method | {"seed": None} | curve]

    return current


def test_addresses_are_shown_without_keys() -> None:
    text = "lethe run g.yaml --results 's3://KEY:secret@bucket/r?region=x' --data data"
    assert report_rows.without_secrets(text) == "lethe run g.yaml --results 's3://bucket/r' --data data"
    assert report_rows.without_secrets("/tmp/a b/r") == "/tmp/a b/r"


def test_messages_have_no_keys() -> None:
    shown = without_keys(
        "s3://KEY:secret@bucket/r?region=x 'postgresql://a:b@h/d?sslmode=on&password=p%40&c=1'"
    )
    assert shown == "s3://bucket/r?region=x 'postgresql://h/d?sslmode=on&password=…&c=1'"
    assert without_keys("s3://b/r?Access_Key=abc&secret_token=d") == "s3://b/r?Access_Key=…&secret_token=…"
    assert without_keys("what? key=1, a=b") == "what? key=1, a=b"
