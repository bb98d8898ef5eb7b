"""`lethe duplicates`: the clusters of exact and near-duplicates of a dataset with their sample ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from orchestrator import catalogue
from orchestrator.errors import UserError, nearest
from workers import duplicates


def listing(name: str, data: Path) -> list[dict[str, Any]]:
    """Each cluster with its kind, exact or near, and its samples: id, pool or test, label. Exact ones first;
    a near one with none but equal pixels is left out.
    """
    known = catalogue.plugins("datasets")
    if name not in known:
        hint = nearest(name, known)
        raise UserError(f"unknown dataset {name!r}.{hint}  `lethe list datasets` shows all.")
    from methods.base import plugin  # torch: not before the input is known good

    dataset = plugin("workers.datasets", name)()
    try:
        arrays = dataset.load(data)
    except FileNotFoundError as error:
        raise UserError(str(error)) from None
    parts = [arrays.pool_images, arrays.test_images]
    found = duplicates.find(
        (part[i : i + 1024] for part in parts for i in range(0, len(part), 1024)),
        mirrored=dataset.augment_flip,
    )
    labels = np.concatenate([arrays.pool_labels, arrays.test_labels])
    n_pool = len(arrays.pool_labels)
    clusters = []
    for kind, of in (("exact", found.exact), ("near", found.near)):
        for cluster in np.unique(of[of >= 0]):
            ids = np.flatnonzero(of == cluster)
            if kind == "near" and np.array_equal(ids, np.flatnonzero(found.exact == cluster)):
                continue
            samples = [
                {"sample_id": int(i), "split": "pool" if i < n_pool else "test", "label": int(labels[i])}
                for i in ids
            ]
            clusters.append({"kind": kind, "cluster": int(cluster), "samples": samples})
    return clusters


def as_text(name: str, clusters: list[dict[str, Any]]) -> str:
    """One line for each cluster, then the counts."""
    lines = [
        f"{found['kind']:<5}  "
        + ", ".join(f"{s['sample_id']} ({s['split']}, label {s['label']})" for s in found["samples"])
        for found in clusters
    ]
    counts = [f"{sum(found['kind'] == kind for found in clusters):,} {kind}" for kind in ("exact", "near")]
    return "\n".join([*lines, f"{name}: {' and '.join(counts)} clusters."])
