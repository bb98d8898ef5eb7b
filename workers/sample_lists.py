"""Lists of samples that recipes only name: the ids travel beside the specification of a task."""

from __future__ import annotations

from typing import Any

from workers import designs
from workers.data import DeviceDataset

Lists = dict[str, list[int]] | None


def in_full(members: dict[str, Any], lists: Lists, n_pool: int) -> dict[str, Any]:
    """The recipe of members with a mask (n_pool,) in the place of a list's hash; as it is without a list."""
    if "listed" not in members:
        return members
    return members | {"listed": designs.mask(_ids(lists, members["listed"]), n_pool)}


def bound(forget: Any, chosen: dict[str, Any], lists: Lists, dataset: DeviceDataset) -> Any:
    """A forget recipe with what it chooses by (its constant `given`), if that is not the labels.

    chosen: the recipe as the specification has it: a file's list by its hash, a list that is computed by what
    it is computed from.
    """
    given = getattr(forget, "given", "labels")
    if given == "labels":
        return forget
    if given == "subclasses":
        if dataset.host_subclasses is None:
            raise ValueError(f"{dataset.name} has no subclasses")
        return designs.By(forget, dataset.host_subclasses[: dataset.n_pool])
    key = chosen["ids"]["sha256"] if "ids" in chosen else chosen["bases"]
    return designs.By(forget, designs.mask(_ids(lists, key), dataset.n_pool))


def _ids(lists: Lists, key: str) -> list[int]:
    """The list with this key, sorted; LookupError when it did not come with the task, ValueError when a
    file's list has another hash.
    """
    ids = (lists or {}).get(key)
    if ids is None:
        raise LookupError(f"the list {key} did not come with the task")
    if len(key) == 64 and designs.list_sha256(ids) != key:
        raise ValueError(f"the list {key} came with other ids")
    return ids
