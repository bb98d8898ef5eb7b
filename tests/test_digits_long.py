"""The demonstration as a whole: what README.md shows is what the command gives, and its claims hold."""

from __future__ import annotations

import csv
import io
import re

import pytest

from tests.conftest import ROOT, Lethe

Row = dict[str, str]


def readme_rows(heading: str, *wanted: str) -> dict[str, list[float]]:
    """Method -> the wanted columns of the first table after a heading of README.md."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition(heading)[2]
    (table, *_) = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    label, places = cells[0].index("Method"), [cells[0].index(name) for name in wanted]
    return {row[label]: [float(re.split(r"[ ±\[]", row[place])[0]) for place in places] for row in cells[2:]}


def run_grid(lethe: Lethe, name: str) -> list[Row]:
    done = lethe("run", ROOT / f"grids/{name}.yaml", timeout=1700)
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader(io.StringIO(lethe("report", "--format", "csv").stdout)))


def check_shown(shown: dict[str, list[float]], rows: dict[str, Row], tolerances: dict[str, float]) -> None:
    """What README.md shows is near: another processor rounds differently, and training amplifies it."""
    assert set(shown) == set(rows)
    for name, values in shown.items():
        for (column, tolerance), value in zip(tolerances.items(), values, strict=True):
            assert float(rows[name][column]) == pytest.approx(value, abs=tolerance), (name, column)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_demonstration(lethe: Lethe) -> None:
    rows = {row["label"]: row for row in run_grid(lethe, "digits")}
    retrain, base = rows["Retrain"], rows["Base"]
    for comparison in ("forgotten_vs_retrained", "forgotten_vs_never", "fingerprint"):
        low, high = (float(retrain[f"auc_{comparison}_{end}"]) for end in ("low", "high"))
        assert low < 0.5 < high, comparison
    assert float(retrain["retained_delta_low"]) < 0 < float(retrain["retained_delta_high"])
    assert float(base["auc_forgotten_vs_retrained_low"]) > 0.55
    assert float(base["auc_forgotten_vs_never_low"]) > 0.52  # memory of the sample, not of the method
    assert sum(row["kind"] == "unlearn" for row in rows.values()) == 18
    assert sorted(int(row["rank"]) for row in rows.values() if row["rank"]) == list(range(1, 19))
    for name, row in rows.items():
        assert float(row["ta"]) > float(retrain["ta"]) - 0.1, f"{name} lost its utility"
    shown = readme_rows("## What the demonstration shows", "TA", "AUC forgotten/retrained")
    check_shown(shown, rows, {"ta": 0.03, "auc_forgotten_vs_retrained": 0.05})


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_whole_classes(lethe: Lethe) -> None:
    """Mnemonic codes forget class 0 at E_F ≥ 99 %, and A_R stays within 3 points of their base's."""
    found = run_grid(lethe, "digits-class")
    rows = {row["label"]: row for row in found if row["forget"] == "class(classes=[0])"}
    base = rows["Base, mnemonic(t_mix=0.5)"]
    assert float(rows["MNC"]["ef"]) >= 0.99
    assert float(rows["MNC"]["ar"]) >= float(base["ar"]) - 0.03
    for retrain in (rows["Retrain"], rows["Retrain, mnemonic(t_mix=0.5)"]):
        low, high = (float(retrain[f"auc_forgotten_vs_retrained_{end}"]) for end in ("low", "high"))
        assert low < 0.5 < high and float(retrain["ef"]) == 1
    shown = readme_rows("### Whole classes", "TA", "E_F", "A_R")
    check_shown(shown, rows, {"ta": 0.05, "ef": 0.1, "ar": 0.05})
