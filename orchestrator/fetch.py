"""`lethe prepare`: built-in datasets are downloaded and verified by their own files in workers/datasets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator import catalogue
from orchestrator.errors import UserError, nearest


def prepared(datasets: Sequence[str], data: str) -> Iterator[str]:
    """A line for each dataset that is there now; UserError: one is unknown or could not be fetched."""
    known = catalogue.plugins("datasets")
    unknown = [name for name in datasets if name not in known]
    if unknown:
        raise UserError(
            *(f"unknown dataset {n!r}.{nearest(n, known)}  `lethe list datasets` shows all." for n in unknown)
        )
    from http.client import HTTPException

    from methods.base import plugin

    for name in datasets:
        try:
            where = plugin("workers.datasets", name)().prepare(Path(data))
        except FileNotFoundError as error:  # the dataset's own line on what is missing or damaged
            raise UserError(str(error)) from None
        except (OSError, RuntimeError, HTTPException) as error:
            raise UserError(f"{name}: could not be fetched ({' '.join(str(error).split())[:200]}).") from None
        yield f"{name}: {where}"
