"""Identity: canonical JSON, task ids, and seeds derived from named parts.

An id is a hash of content (parameters, recipes, parent ids, code versions), never of a path or a time. An
option at its neutral value is left out (`present`), so a new option does not change the ids of old results.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
ID_LENGTH = 20  # hexadecimal digits, 80 bits: a collision among 10^6 tasks has probability 4e-13


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; NaN and infinities raise ValueError."""
    return _ENCODER.encode(value)


def present(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not None: None is the neutral value and leaves no trace in an id."""
    return {key: value for key, value in options.items() if value is not None}


def digest(value: Any) -> str:
    """The id of a JSON-like value: 80 bits of the SHA-256 of its canonical JSON, as 20 hex digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:ID_LENGTH]


class Digester:
    """The digests of mappings many of whose values are the same objects, each turned into text once.

    shared: the keys whose values are worth keeping. They must not be changed while this is in use.
    """

    def __init__(self, shared: Iterable[str]) -> None:
        self._shared = frozenset(shared)
        self._known: dict[int, tuple[Any, str]] = {}  # by identity; holding the value keeps that its own
        self._orders: dict[tuple[str, ...], list[tuple[str, str, bool]]] = {}

    def digest(self, value: Mapping[str, Any]) -> str:
        """What `digest` gives."""
        return hashlib.sha256(self.text(value).encode()).hexdigest()[:ID_LENGTH]

    def text(self, value: Mapping[str, Any]) -> str:
        """What `canonical` gives."""
        keys = tuple(value)
        order = self._orders.get(keys)
        if order is None:
            order = [(key, f"{canonical(key)}:", key in self._shared) for key in sorted(keys)]
            self._orders[keys] = order
        return f"{{{','.join([name + self._of(value[key], shared) for key, name, shared in order])}}}"

    def around(self, value: Mapping[str, Any], *keys: str) -> Callable[..., str]:
        """What `digest` gives of the mapping with further keys, as a function of the values of these in
        order, for many mappings that differ there alone.
        """
        order = sorted({*value, *keys})
        pieces = [
            f"{canonical(key)}:{'%s' if key in keys else self._whole(value[key], key)}" for key in order
        ]
        places = [(keys.index(key), key in self._shared) for key in order if key in keys]
        text = f"{{{','.join(pieces)}}}"

        def digest_of(*values: Any) -> str:
            filled = text % tuple(self._of(values[place], shared) for place, shared in places)
            return hashlib.sha256(filled.encode()).hexdigest()[:ID_LENGTH]

        return digest_of

    def _whole(self, value: Any, key: str) -> str:
        """A value as text, fit for a format with `%`."""
        return self._of(value, key in self._shared).replace("%", "%%")

    def _of(self, value: Any, shared: bool) -> str:
        kind = type(value)
        if kind is int:
            return str(value)
        if kind is bool:
            return "true" if value else "false"
        if kind is str and value.isascii() and value.isalnum():
            return f'"{value}"'
        if not shared:
            return self.text(value) if kind is dict else canonical(value)
        known = self._known.get(id(value))
        if known is None:
            known = self._known[id(value)] = (value, canonical(value))
        return known[1]


def derived_seed(*parts: object) -> int:
    """A 63-bit seed from named parts, e.g. derived_seed("init", "cifar10", "resnet18", 3).

    A new axis of the grid adds new names and shifts nobody's seed.
    """
    return int.from_bytes(hashlib.sha256(seed_name(*parts).encode()).digest()[:8], "big") >> 1


def seed_name(*parts: object) -> str:
    """What a seed is derived from, as one text; it may stand for the first parts of further seeds."""
    return "|".join(map(str, parts))
