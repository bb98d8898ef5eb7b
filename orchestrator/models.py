"""Model files as the driver sees them: safetensors, told from damaged ones by their hash. No torch here.

Format: 8 bytes, the length of a JSON header, the header, the tensors (huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import hashlib
import json


def weights_sha256(content: bytes) -> str | None:
    """SHA-256 over name and bytes of each tensor in the order of their names, as workers/run_task.py records
    it; None if this is no whole safetensors file.
    """
    size = 8 + int.from_bytes(content[:8], "little")
    try:
        header = dict(json.loads(content[8:size]))
        header.pop("__metadata__", None)
        places = {
            str(name): [int(place) for place in of["data_offsets"]] for name, of in sorted(header.items())
        }
    except (ValueError, KeyError, TypeError):
        return None
    if size + max((end for _, end in places.values()), default=0) != len(content):
        return None
    digest, data = hashlib.sha256(), memoryview(content)
    for name, (start, end) in places.items():
        digest.update(name.encode())
        digest.update(data[size + start : size + end])
    return digest.hexdigest()
