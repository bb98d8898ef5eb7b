"""What the report says of duplicates: those of a dataset, and how many forgotten samples have one that
stayed.

A near-duplicate of a forgotten sample in the retain set hides whether the sample was forgotten, and one of a
never-seen sample among the members makes it seen. The clusters are columns of the table samples, found when
it was written (workers/duplicates.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from orchestrator.audit import Reader
from orchestrator.plan import Cell
from orchestrator.store import Store
from workers.designs import FORGET, OUT, RETAIN

KINDS = ("exact", "near")
UNKNOWN = "not looked for: the table samples was written by an earlier version"

Facts = dict[str, Any]
Clusters = dict[str, np.ndarray]  # kind -> the smallest sample id of each sample's cluster, -1 alone


def of_cell(reader: Reader, cell: Cell) -> Facts | None:
    """The duplicates of a cell's dataset and, per track, those of forgotten and of never-seen samples, means
    over designs; None where the table samples does not know them.
    """
    table = clusters_of(reader.store, cell.dataset)
    if table is None:
        return None
    clusters, labels, in_pool = table
    facts: Facts = {kind: counts(clusters[kind], labels, in_pool) for kind in KINDS}
    for track in ("main", "audit"):
        found = [_of_design(states, clusters) for states in _designs(reader, cell, track)]
        if found:
            means = {name: float(np.mean([row[name] for row in found])) for name in found[0]}
            facts[track] = {"designs": len(found)} | means
    return facts


def clusters_of(store: Store, dataset: str) -> tuple[Clusters, np.ndarray, np.ndarray] | None:
    """Clusters by kind, labels and who is of the pool, each (n,); None where they are not known."""
    names = ["sample_id", "split", "label", "dup_exact", "dup_near"]
    table = store.read_table("samples", names, f"dataset={dataset}").sort_by("sample_id")
    if not table.num_rows or any(table[f"dup_{kind}"].null_count for kind in KINDS):
        return None
    in_pool = np.array(table["split"].to_pylist()) == "pool"
    return {kind: table[f"dup_{kind}"].to_numpy() for kind in KINDS}, table["label"].to_numpy(), in_pool


def counts(clusters: np.ndarray, labels: np.ndarray, in_pool: np.ndarray) -> dict[str, int]:
    """Clusters, samples in them, the largest, pairs of a pool and a test sample, clusters of many labels."""
    alike = clusters >= 0
    size = int(clusters.max(initial=-1)) + 1
    sizes = np.bincount(clusters[alike], minlength=size)
    pool = np.bincount(clusters[alike & in_pool], minlength=size)
    both = np.unique(np.stack([clusters[alike], labels[alike]]), axis=1)[0]
    return {
        "clusters": int((sizes > 0).sum()),
        "samples": int(alike.sum()),
        "largest": int(sizes.max(initial=0)),
        "pool_test_pairs": int((pool * (sizes - pool)).sum()),
        "label_conflicts": int((np.bincount(both, minlength=size) > 1).sum()),
    }


def _designs(reader: Reader, cell: Cell, track: str) -> Iterator[np.ndarray]:
    """The states (pool,) of each design of a track that a finished run of the cell used, each once."""
    known: set[str] = set()
    for tasks in (cell.retrains, *(variant.tasks for variant in cell.variants)):
        for key, task in tasks.items():
            if key[0] != track or not reader.done(task) or reader.runs[task]["design"] in known:
                continue
            states = reader.states(task)
            if states is not None:
                known.add(reader.runs[task]["design"])
                yield states


def _of_design(states: np.ndarray, clusters: Clusters) -> dict[str, int]:
    """Forgotten samples and those with a duplicate in the retain set, never-seen ones and those with one
    among the members.
    """
    found = {"forgotten": int((states == FORGET).sum()), "never": int((states == OUT).sum())}
    for kind in KINDS:
        own = clusters[kind][: len(states)]
        alike = own >= 0  # few: all else is left out before anything is sorted
        own, there = own[alike], states[alike]
        members = (there == RETAIN) | (there == FORGET)
        found[f"forgotten_{kind}"] = int(np.isin(own[there == FORGET], own[there == RETAIN]).sum())
        found[f"never_{kind}"] = int(np.isin(own[there == OUT], own[members]).sum())
    return found


# ---- in words ----------------------------------------------------------------------------------------------


def lines(dataset: str, facts: Facts | None) -> list[str]:
    """One line on the dataset and, where it has duplicates, one for each track; none if it is not known."""
    if facts is None:
        return []
    if not facts["near"]["clusters"]:
        return [f"Duplicates in {dataset}, pool and test set: none, exact or near."]
    kinds = "; ".join(f"{kind} {_counted(facts[kind])}" for kind in KINDS)
    found = [f"Duplicates in {dataset}, pool and test set: {kinds}."]
    if "main" in facts:
        found.append(f"Duplicates, main track: {_share(facts['main'], 'forgotten')} in the retain set.")
    if "audit" in facts:
        of = facts["audit"]
        found.append(
            f"Duplicates, audit track, mean over {of['designs']:,} designs: {_share(of, 'forgotten')} in the"
            f" retain set; {_share(of, 'never')} among the members."
        )
    return found


def _counted(of: dict[str, int]) -> str:
    if not of["clusters"]:
        return "none"
    return (
        f"{of['clusters']:,} cluster{'s' * (of['clusters'] != 1)} of {of['samples']:,} samples (largest"
        f" {of['largest']:,}, pool–test pairs {of['pool_test_pairs']:,}, clusters of several labels"
        f" {of['label_conflicts']:,})"
    )


def _share(of: dict[str, float], world: str) -> str:
    """'3 of 287 forgotten samples have a near-duplicate (1 an exact one)'."""
    values = (of[name] for name in (f"{world}_near", f"{world}_exact", world))
    near, exact, total = (f"{v:,.0f}" if v == round(v) else f"{v:,.1f}" for v in values)
    words = {"forgotten": "forgotten", "never": "never-seen"}[world]
    return f"{near} of {total} {words} samples have a near-duplicate ({exact} an exact one)"
