"""Identity: canonical JSON, task ids, and seeds derived from named parts.

An id is a hash of content (parameters, recipes, parent ids, code versions), never of a path or a time. An
option at its neutral value is left out (`present`), so a new option does not change the ids of old results.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

ID_LENGTH = 20  # hexadecimal digits, 80 bits: a collision among 10^6 tasks has probability 4e-13


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; NaN and infinities raise ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def present(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not None: None is the neutral value and leaves no trace in an id."""
    return {key: value for key, value in options.items() if value is not None}


def digest(value: Any) -> str:
    """The id of a JSON-like value: 80 bits of the SHA-256 of its canonical JSON, as 20 hex digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:ID_LENGTH]


def derived_seed(*parts: object) -> int:
    """A 63-bit seed from named parts, e.g. derived_seed("init", "cifar10", "resnet18", 3).

    A new axis of the grid adds new names and shifts nobody's seed.
    """
    text = "|".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
