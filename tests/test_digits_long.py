"""The demonstration as a whole: what README.md shows is what the command gives, and its claims hold."""

from __future__ import annotations

import csv
import io
import re

import pytest

from tests.conftest import ROOT, Lethe

Row = dict[str, str]


def readme_rows() -> dict[str, list[float]]:
    """Method -> TA and AUC forgotten/retrained of the table in README.md."""
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    wanted = [cells[0].index(name) for name in ("TA", "AUC forgotten/retrained")]
    return {row[1]: [float(re.split(r"[ ±\[]", row[place])[0]) for place in wanted] for row in cells[2:]}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_demonstration(lethe: Lethe) -> None:
    done = lethe("run", ROOT / "grids/digits.yaml", timeout=800)
    assert done.returncode == 0, done.stderr
    table = lethe("report", "--format", "csv").stdout
    rows: dict[str, Row] = {row["label"]: row for row in csv.DictReader(io.StringIO(table))}

    retrain, base = rows["Retrain"], rows["Base"]
    low, high = (float(retrain[f"auc_forgotten_vs_retrained_{end}"]) for end in ("low", "high"))
    assert low < 0.5 < high
    assert float(base["auc_forgotten_vs_retrained_low"]) > 0.55
    assert float(base["auc_forgotten_vs_never_low"]) > 0.52  # memory of the sample, not of the method
    for name, row in rows.items():
        assert float(row["ta"]) > float(retrain["ta"]) - 0.1, f"{name} lost its utility"

    shown = readme_rows()
    assert set(shown) == set(rows)
    for name, (
        accuracy,
        auc,
    ) in shown.items():  # another processor rounds differently, and training amplifies it
        assert float(rows[name]["ta"]) == pytest.approx(accuracy, abs=0.03), name
        assert float(rows[name]["auc_forgotten_vs_retrained"]) == pytest.approx(auc, abs=0.05), name
