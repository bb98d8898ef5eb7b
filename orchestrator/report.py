"""`lethe report`: every method against retraining, one table per cell, in one of FORMATS."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator import figures, report_audit, report_card, report_poison, report_tuning
from orchestrator.report_card import ENOUGH_PAIRS, TOO_NARROW, Card
from orchestrator.report_columns import COLUMNS, Column
from orchestrator.report_duplicates import lines as told
from orchestrator.report_rank import RULE
from orchestrator.report_rows import CellReport, Entry, Report, collect, flat
from orchestrator.report_tables import FURTHER
from orchestrator.report_tuning import Section
from orchestrator.store import Store

FORMATS = ("html", "md", "csv", "latex", "json", "parquet", "card")
TEMPLATES = Path(__file__).resolve().parent / "templates"

INTERVALS = (
    "mean ± half the 95 % t-interval over seeds, value [low, high] with the 95 % cluster-bootstrap interval"
    " over the pairs of bases; n/a: not known."
)
SHOWN_SAMPLES = 200  # of those that are exposed
Rows = Sequence[dict[str, Any]]
NO_RESULTS = "No plan has been run on these results yet."


def render(store: Store, format: str) -> str | bytes:
    """The report of a store in one of FORMATS: bytes for Parquet, text for the others."""
    report = collect(store)
    rows = [row for cell in report.cells for row in cell.rows]
    if format == "parquet":
        return _parquet(rows)
    if format in ("json", "csv"):
        return _json(rows) if format == "json" else _csv(rows)
    if format == "latex":
        return _latex(report)
    cards = report_card.cards(store, report)
    if format == "card":
        return report_card.as_json(cards)
    tuning = report_tuning.sections(store, [cell.cell for cell in report.cells])
    return _html(report, cards, tuning) if format == "html" else _markdown(report, cards, tuning)


def _json(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows, allow_nan=False, ensure_ascii=False)


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(flat, rows))
    return text.getvalue()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    """The rows of CSV with types; a number that no row knows is a column of nulls."""
    table = pa.Table.from_pylist([flat(row) for row in rows])
    unknown = [pa.float64() if pa.types.is_null(field.type) else field.type for field in table.schema]
    sink = pa.BufferOutputStream()
    pq.write_table(table.cast(pa.schema(zip(table.column_names, unknown, strict=True))), sink)
    return bytes(sink.getvalue())


# ---- what a table shows ------------------------------------------------------------------------------------


def shown(row: dict[str, Any], column: Column) -> str:
    """A value as text: 'n/a' where it is not known, empty where there is nothing to say."""
    if column.key == "notes":
        return "; ".join(_notes(row))
    value = row[column.key]
    if value is None:
        return "" if column.key in ("rank", "pareto") else "n/a"
    if column.style == "plain":
        return str(value)
    low, high, places = row.get(f"{column.key}_low"), row.get(f"{column.key}_high"), column.decimals
    if low is None or high is None or column.style == "bare":
        return f"{value:.{places}f}"
    if column.style == "range":
        return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"
    return f"{value:.{places}f} ± {(high - low) / 2:.{places}f}"


def _notes(row: dict[str, Any]) -> list[str]:
    counts = [f"{count:,} {status}" for status, count in row["failed"].items()]
    counts += [f"{sum(row['warnings'].values()):,} warned"] * bool(row["warnings"])
    return [*row["flags"], *counts, *([f"{row['missing']:,} not run"] if row["missing"] else [])]


def columns(cell: CellReport) -> list[Column]:
    """The columns of a cell's table."""
    rows = cell.rows
    return [c for c in COLUMNS if not c.optional or any(row[c.key] is not None for row in rows)]


def further(cell: CellReport) -> list[tuple[str, list[Column]]]:
    """Title and columns of the further tables of a cell that hold something."""
    label = next(column for column in COLUMNS if column.key == "label")
    found = []
    for table in FURTHER:
        used = [c for c in table.columns if any(row[c.key] is not None for row in cell.rows)]
        if used:
            found.append((table.title, [label, *used]))
    return found


def used_columns(cells: list[CellReport]) -> list[Column]:
    """The columns of all tables of these cells, each once, in order."""
    used = [c for cell in cells for c in columns(cell)]
    used += [c for cell in cells for _, own in further(cell) for c in own]
    return list(dict.fromkeys(used))


def prices(cell: CellReport) -> list[str]:
    """One line for each other training recipe: what it costs before anything is deleted."""
    column = Column("utility_price", "", "")
    return [
        f"Price of {row['training']} training before any deletion: TA of the plain base − TA of this base ="
        f" {shown(row, column)}, seed by seed."
        for row in cell.rows
        if row["utility_price"] is not None
    ]


def title(cell: CellReport) -> str:
    return f"{cell.cell.dataset} · {cell.cell.architecture} · {cell.cell.forget}"


def caption(cell: CellReport) -> str:
    """What the numbers of a cell rest on."""
    seeds = max((row["n"] for row in cell.rows), default=0)
    audits = [row for row in cell.rows if row["pairs"]]
    text = f"Main track: {seeds} seed{'' if seeds == 1 else 's'}.{report_poison.note(cell.rows)}"
    if not audits:
        return f"{text} No audit."
    most = max(audits, key=lambda row: row["n_positive"])
    return (
        f"{text} Audit: {most['pairs']} pairs of bases, {most['samples']:,} samples,"
        f" {most['n_positive']:,} scores a world.{f' {TOO_NARROW}' if most['pairs'] < ENOUGH_PAIRS else ''}"
    )


def failures(cell: CellReport) -> list[str]:
    """One line for each way in which runs of a row failed or warned."""
    return [line for entry in cell.entries for line in _failure_lines(entry)]


def _failure_lines(entry: Entry) -> list[str]:
    lines = []
    for failure in entry.failures:
        why = f": {failure.reason}" if failure.reason else ""
        log = f" (first log: {failure.log})" if failure.log else ""
        lines.append(f"{entry.row['label']}: {failure.count:,} {failure.status}{why}{log}")
    for text, count in entry.row["warnings"].items():
        lines.append(f"{entry.row['label']}: {count:,} warned: {text}")
    return lines


# ---- Markdown ----------------------------------------------------------------------------------------------


def _markdown(report: Report, cards: list[Card], tuning: list[Section]) -> str:
    blocks = ["# Lethe report", *map(_markdown_cell, report.cells, cards)]
    blocks += report_tuning.markdown(tuning, _md, _md_table)
    if report.cells:
        meanings = [f"- **{_md(c.head)}**: {_md(c.meaning)}" for c in used_columns(report.cells)]
        blocks.append(
            "\n".join(["## How to read the tables", "", _md(f"Values: {INTERVALS}"), "", *meanings])
        )
        blocks.append(_md(RULE))
    else:
        blocks.append(NO_RESULTS)
    facts = [f"- {name}: {'; '.join(map(_md, values))}" for name, values in provenance(report)]
    return "\n\n".join([*blocks, "\n".join(["## Provenance", "", *facts])]) + "\n"


def _markdown_cell(cell: CellReport, card: Card) -> str:
    lines = [f"## {_md(title(cell))}", "", f"{caption(cell)} Cell `{cell.cell.id}`.", ""]
    used = columns(cell)
    lines += _md_table(cell.rows, used)
    lines += [f"\n{_md(line)}" for line in (*prices(cell), *told(cell.cell.dataset, cell.duplicates))]
    for heading, used in further(cell):
        lines += ["", f"### {_md(heading)}", "", *_md_table(cell.rows, used)]
    failed = failures(cell)
    lines += (
        ["", "Not finished, or with a warning:", "", *(f"- {_md(line)}" for line in failed)] if failed else []
    )
    lines += ["", "### Audit card", ""]
    for name, values in report_card.facts(card):
        listed = [f"  - {_md(value)}" for value in values]
        lines += [f"- {name}:", *listed] if len(values) > 1 else [f"- {name}: {_md(values[0])}"]
    return "\n".join(lines)


def _md_table(rows: Rows, used: Sequence[Column]) -> list[str]:
    lines = [_md_row([column.head for column in used]), "|" + " --- |" * len(used)]
    return lines + [_md_row([shown(row, column) for column in used]) for row in rows]


def _md_row(values: list[str]) -> str:
    return "| " + " | ".join(map(_md, values)) + " |"


def _md(text: str) -> str:
    """Text that is neither markup nor the end of a table cell in Markdown."""
    return re.sub(r"([\\|`*<])", r"\\\1", " ".join(text.split()))


# ---- LaTeX -------------------------------------------------------------------------------------------------

_LATEX = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": "$-$",
    "·": r"$\cdot$",
    "≤": r"$\leq$",
    "ε": r"$\varepsilon$",
    "μ": r"$\mu$",
    "φ": r"$\varphi$",
    "λ": r"$\lambda$",
    "Δ": r"$\Delta$",
    "‖": r"$\|$",
}


def _latex(report: Report) -> str:
    head = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}."
    rule = "\n".join(f"% {line}" for line in (INTERVALS, RULE))
    return "\n\n".join([f"{head}\n{rule}", *map(_latex_cell, report.cells)]) + "\n"


def _latex_cell(cell: CellReport) -> str:
    notes = " ".join([caption(cell), *prices(cell)])
    tables = [_latex_table(cell, columns(cell), f"{title(cell)}. {notes}", f"tab:{cell.cell.id}")]
    for number, (heading, used) in enumerate(further(cell), 1):
        label = f"tab:{cell.cell.id}-{number}"
        tables.append(_latex_table(cell, used, f"{title(cell)}. {heading}.", label))
    return "\n\n".join(tables)


def _latex_table(cell: CellReport, used: list[Column], about: str, label: str) -> str:
    rows = [[_tex(shown(row, column)) for column in used] for row in cell.rows]
    body = [" & ".join(row) + r" \\" for row in rows]
    references = sum(row["kind"] != "unlearn" for row in cell.rows)
    left = sum(column.key in ("label", "notes") for column in used)
    before = "r" if used[0].key == "rank" else ""
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(about)}}}",
            rf"\label{{{label}}}",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{{before}{'l' * left}{'r' * (len(used) - left - len(before))}}}",
            r"\toprule",
            " & ".join(_tex(column.head) for column in used) + r" \\",
            r"\midrule",
            *body[:references],
            r"\midrule",
            *body[references:],
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
        ]
    )


def _tex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in " ".join(text.split()))


# ---- HTML --------------------------------------------------------------------------------------------------


def provenance(report: Report) -> list[tuple[str, list[str]]]:
    """Name and values of each fact on where the numbers come from."""
    facts = report.provenance
    counts = [f"{facts['recorded']:,} recorded"]
    counts += [f"{count:,} {name}" for part in ("kinds", "statuses") for name, count in facts[part].items()]
    commands = [
        f"{plan['command']}  ({plan['created_at']}, code {plan['commit']})" for plan in facts["plans"]
    ]
    listed = {
        "Results": [facts["results"]],
        "Runs": counts,
        "Commands": commands,
        "Code": facts["commits"],
        "Versions": facts["versions"],
        "Devices": facts["devices"],
        "Not readable": facts["damaged"],
    }
    return [(name, values) for name, values in listed.items() if values]


def _html(report: Report, cards: list[Card], tuning: list[Section]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cells = [_html_cell(cell, card) for cell, card in zip(report.cells, cards, strict=True)]
    drawn = any(cell["figures"] for cell in cells)
    return environment.get_template("report.html.j2").render(
        cells=cells,
        tuning=[{"title": t.title, "note": t.note, **_html_table(t.rows, t.columns)} for t in tuning],
        tuning_rule=report_tuning.CAPTION,
        columns=used_columns(report.cells),
        intervals=INTERVALS,
        rule=RULE,
        empty=NO_RESULTS,
        provenance=provenance(report),
        results=report.provenance["results"].rstrip("/").rpartition("/")[2],
        plotly=figures.plotly_js() if drawn else "",
    )


def _html_cell(cell: CellReport, card: Card) -> dict[str, Any]:
    """What the template shows of a cell."""
    return {
        "id": cell.cell.id,
        "title": title(cell),
        "dataset": cell.cell.dataset,
        "architecture": cell.cell.architecture,
        "forget": cell.cell.forget,
        "caption": caption(cell),
        **_html_table(cell.rows, columns(cell)),
        "further": [_html_table(cell.rows, used) | {"title": heading} for heading, used in further(cell)],
        "prices": [*prices(cell), *told(cell.cell.dataset, cell.duplicates)],
        "failures": failures(cell),
        "figures": figures.of_cell(cell),
        "exposed": _exposed(cell),
        "card": report_card.facts(card),
    }


def _html_table(rows: Rows, used: Sequence[Column]) -> dict[str, Any]:
    return {
        "columns": used,
        "references": [_html_row(row, used) for row in rows if row["kind"] != "unlearn"],
        "methods": [_html_row(row, used) for row in rows if row["kind"] == "unlearn"],
    }


def _exposed(cell: CellReport) -> list[dict[str, Any]]:
    """Label, number and first ids of the exposed samples of each row that could single out one."""
    return [
        {
            "label": entry.row["label"],
            "count": entry.row["exposed_confirmed"],
            "ids": report_audit.exposed_ids(entry.curves)[:SHOWN_SAMPLES],
        }
        for entry in cell.entries
        if entry.row["exposed_confirmed"] is not None
    ]


def _html_row(row: dict[str, Any], used: Sequence[Column]) -> dict[str, Any]:
    pairs = (row["hyperparameters"] or {}).items()
    return {
        "kind": row["kind"],
        "hint": ", ".join([row["method"], *(f"{name}={value}" for name, value in pairs)]),
        "flags": row["flags"],
        "counts": _notes(row)[len(row["flags"]) :],
        "values": [_html_value(row, column) for column in used],
    }


def _html_value(row: dict[str, Any], column: Column) -> dict[str, Any]:
    """A value split into the number and its interval, and what to sort by."""
    text = shown(row, column)
    number, space, interval = (text, "", "") if column.style == "plain" else text.partition(" ")
    value = row.get(column.key, text)
    return {
        "key": column.key,
        "number": number,
        "interval": space + interval,
        "sort": "" if value is None else value,
    }
