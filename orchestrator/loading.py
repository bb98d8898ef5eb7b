"""The datasets of a run on Ray: one actor on the driver's machine reads the files, which need to be nowhere
else; the others get the bytes through the object store, a node once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from orchestrator import cluster
from orchestrator.errors import UserError
from orchestrator.session import Session

RETRIES = 3


def load(session: Session, ours: Any, new: Callable[[], Any]) -> dict[str, Any]:
    """A reference of each dataset's bytes, by its name, after the session has looked at the datasets.

    ours: an actor on this machine, None if none is known to be. new: makes one, which ends here; another one
    comes if it dies.
    """
    for left in reversed(range(RETRIES + 1)):
        loader, arrays = ours or new(), dict[str, Any]()
        try:
            session.load_datasets(partial(_samples, loader, arrays), partial(_try_out, loader))
            break
        except RayActorError as error:
            if not left:
                raise cluster.cannot_start(error) from None
        finally:
            if loader is not ours:
                ray.kill(loader)
        ours = None
    return arrays


def _samples(loader: Any, arrays: dict[str, Any], dataset: str, new: bool) -> dict[str, Any]:
    arrays[dataset] = loader.arrays.remote(dataset)
    try:
        facts = dict(ray.get(loader.samples.remote(dataset)))
        return facts | (dict(ray.get(loader.duplicates.remote(dataset))) if new else {})
    except RayTaskError as error:
        if isinstance(error.cause, FileNotFoundError):
            raise UserError(str(error.cause)) from None
        raise


def _try_out(loader: Any, architecture: str, dataset: str) -> str:
    return str(ray.get(loader.try_out.remote(architecture, dataset)))
