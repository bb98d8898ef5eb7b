"""Files of sample ids: one id a line with `#` comments, or CSV with a column sample_id."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from orchestrator import datasets
from orchestrator.errors import UserError
from workers.designs import list_sha256

COLUMN = "sample_id"
SHOWN = 5  # mistakes of one file that are told


def sha256(ids: Collection[int]) -> str:
    """What identifies a list of sample ids in whatever order."""
    return str(list_sha256(ids))


def read(path: Path, dataset: str) -> list[int]:
    """The sample ids in a file, sorted; UserError with a line for each mistake, naming the file's line."""
    first: dict[int, int] = {}
    mistakes = []
    for line, text in _entries(path):
        problem = _problem(text, dataset)
        if problem is None and int(text) in first:
            problem = f"sample {int(text)} stands twice, first in line {first[int(text)]}."
        if problem is None:
            first[int(text)] = line
        else:
            mistakes.append(f"{path} line {line}: {problem}")
    if len(mistakes) > SHOWN:
        mistakes[SHOWN:] = [f"{path}: {len(mistakes) - SHOWN:,} more lines are wrong."]
    if mistakes:
        raise UserError(*mistakes)
    if not first:
        raise UserError(f"{path}: lists no sample. Write one sample id a line.")
    return sorted(first)


def _problem(text: str, dataset: str) -> str | None:
    """What is wrong with one id of a dataset's pool, None if nothing is."""
    constants = datasets.plugin(dataset).constants
    pool = int(constants["pool_size"])
    test = int(constants.get("test_size", 0))
    if not re.fullmatch(r"-?[0-9]+", text):
        return f"{text[:40]!r} is no sample id, which is a whole number from 0 to {pool - 1}."
    number = int(text)
    if 0 <= number < pool:
        return None
    if pool <= number < pool + test:
        return (
            f"{number} is in the test set of {dataset}, which no model is trained on; ids of the pool are 0"
            f" to {pool - 1}."
        )
    return f"{dataset} has no sample {number}; ids of its pool are 0 to {pool - 1}."


def _entries(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text of the id) for each id in a file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `file` is relative to the grid file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as text ({error}).") from None
    kept = [(number, text.partition("#")[0].strip()) for number, text in enumerate(lines, start=1)]
    kept = [(number, text) for number, text in kept if text]
    if path.suffix.lower() == ".csv" or (kept and COLUMN in _cells(kept[0][1])):
        yield from _column(path, kept)
    else:
        yield from kept


def _column(path: Path, lines: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    header = _cells(lines[0][1]) if lines else []
    if COLUMN not in header:
        raise UserError(f"{path}: no column {COLUMN}; its first line is {','.join(header)[:80]!r}.")
    place = header.index(COLUMN)
    for number, text in lines[1:]:
        cells = _cells(text)
        yield number, cells[place] if place < len(cells) else ""


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line]), [])]
