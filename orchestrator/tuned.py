"""Winners of tuning as files: one YAML file per cell in results/tuned/, and those shipped in methods/tuned/.

A winner counts for the cell it was found in: the same dataset, architecture, forget recipe and training, and
the same version of the method. The file says how it was found, so that a reader can judge it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml

from orchestrator.catalogue import ROOT
from orchestrator.keys import digest
from orchestrator.store import Store

FOLDER = "tuned"
SHIPPED = ROOT / "methods" / FOLDER
RULE = (
    "The best trials and the default are run again on fresh seeds and another split; the lowest mean of the"
    " objective there wins. Winner and default are then compared on fresh seeds once more, seed by seed."
)


@dataclass(frozen=True)
class Place:
    """What a winner holds for. training: digest of all that decides the bases (recipe, split)."""

    dataset: str
    architecture: str
    forget: str
    training: str

    @property
    def file(self) -> str:
        """A file name that people can read and no two places share."""
        words = (self.dataset, self.architecture, self.forget)
        slug = "_".join(re.sub(r"[^A-Za-z0-9._=-]+", "-", word).strip("-") for word in words)
        return f"{slug}_{digest(asdict(self))[:6]}.yaml"


@dataclass(frozen=True)
class Winner:
    """A method's hyper-parameters in one place.

    facts: how they were found (study, objective, budget, origin, values on fresh seeds, noise floor, commit).
    """

    method: str
    version: int
    hyperparameters: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)


Winners = dict[tuple[Place, str, int], Winner]  # by place, method and version of the method


def write(store: Store, place: Place, winners: Iterable[Winner]) -> str:
    """Write the winners of a place beside those its file has; returns the file's name in the store."""
    name = f"{FOLDER}/{place.file}"
    kept = {w.method: w for _, w in _read(store.read(name))} if store.exists(name) else {}
    kept |= {winner.method: winner for winner in winners}
    data = {
        **asdict(place),
        "rule": RULE,
        "winners": {
            name: {"version": w.version, "hyperparameters": dict(w.hyperparameters), **w.facts}
            for name, w in sorted(kept.items())
        },
    }
    text = "# Written by `lethe tune`.\n" + yaml.safe_dump(
        data, sort_keys=False, width=110, allow_unicode=True
    )
    store.write(name, text.encode())
    return name


def known(store: Store | None, *, shipped: bool = True) -> Winners:
    """The shipped winners and, above them, those of a store; files that are no such YAML are noted there."""
    found: Winners = {}
    for path in sorted(SHIPPED.glob("*.yaml")) if shipped else []:
        found |= _keyed(_read(path.read_bytes()))
    for name in store.files(FOLDER, ".yaml") if store is not None else []:
        try:
            found |= _keyed(_read(store.read(name)))  # type: ignore[union-attr]
        except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
            store.note_damage(name)  # type: ignore[union-attr]
    return found


def _keyed(read: Iterable[tuple[Place, Winner]]) -> Winners:
    return {(place, winner.method, winner.version): winner for place, winner in read}


def _read(text: bytes) -> Iterator[tuple[Place, Winner]]:
    data = yaml.safe_load(text)
    place = Place(*(str(data[name]) for name in ("dataset", "architecture", "forget", "training")))
    for method, entry in data["winners"].items():
        facts = {key: value for key, value in entry.items() if key not in ("version", "hyperparameters")}
        yield place, Winner(str(method), int(entry["version"]), dict(entry["hyperparameters"]), facts)
