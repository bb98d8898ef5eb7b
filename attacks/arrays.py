"""Numpy arrays and torch tensors alike: the few operations that the two name or define differently.

Code for both is written once, in the names of the Python array API that they share (`xp.where`, `xp.concat`,
`axis=`, `device=`), with `xp = namespace(array)`. A tensor stays on its device. torch is not imported here,
so a program with numpy arrays does not load it.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import torch

NumpyFloats: TypeAlias = NDArray[np.float64]
Floats: TypeAlias = "NumpyFloats | torch.Tensor"  # float64
Mask: TypeAlias = "NDArray[np.bool_] | torch.Tensor"
Counts: TypeAlias = "NDArray[np.int64] | torch.Tensor"
Array: TypeAlias = "NDArray[Any] | torch.Tensor"
Given: TypeAlias = "ArrayLike | torch.Tensor"  # what a caller may pass

BLOCK = 1024  # numbers that one thread adds up


def namespace(*arrays: Any) -> ModuleType:
    """numpy, or torch if the arrays are tensors. Raises ValueError if they are not in one place."""
    places = {str(array.device) if is_tensor(array) else "numpy" for array in arrays}
    if len(places) > 1:
        raise ValueError(
            f"arrays: {' and '.join(sorted(places))} are mixed; all numpy, or all on one device."
        )
    return np if places == {"numpy"} else sys.modules["torch"]


def is_tensor(values: Any) -> bool:
    """Whether this is a torch tensor; then torch is loaded already."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)


def array(values: Given) -> Array:
    """The tensor without its gradient; anything else as a numpy array."""
    return values.detach() if is_tensor(values) else np.asarray(values)


def floats(values: Given, like: Array | None = None) -> Floats:
    """values as float64, in the library and on the device of `like`, or where they are."""
    given = array(values)
    place = given if like is None else like
    xp = namespace(place)
    return xp.asarray(given, dtype=xp.float64, device=place.device)


def host(values: Array) -> NDArray[Any]:
    """A numpy array of it."""
    return values.detach().cpu().numpy() if is_tensor(values) else np.asarray(values)


def sort(values: Array) -> Array:
    """Rising values of a list (n,)."""
    return values.sort().values if is_tensor(values) else np.sort(values)


def quantiles(rising: Floats, shares: NumpyFloats) -> Floats:
    """Linearly interpolated quantiles of sorted values (n,), as np.quantile; torch's stops at 16 million."""
    xp = namespace(rising)
    position = shares * (len(rising) - 1)
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, len(rising) - 1)
    a, b = (rising[xp.asarray(index, device=rising.device)] for index in (below, above))
    share = floats(position - below, like=rising)
    return xp.where(share < 0.5, a + (b - a) * share, b - (b - a) * (1 - share))


def median(values: Floats) -> float:
    """The middle value, or the mean of the middle two; torch's own is the lower one."""
    if is_tensor(values):
        return 0.5 * float(values.median() - (-values).median())
    return float(np.median(values))


def mean(values: Floats) -> float:
    """Mean of a list (n,), the same for any number of threads."""
    return float(_sum(values) / len(values)) if is_tensor(values) else float(np.mean(values))


def variance(values: Floats) -> float:
    """Unbiased variance of a list (n,), 0 of a single value, the same for any number of threads."""
    correction = min(1, len(values) - 1)
    if not is_tensor(values):
        return float(np.var(values, ddof=correction))
    return float(_sum((values - _sum(values) / len(values)) ** 2) / (len(values) - correction))


def counts_up_to(rows: Floats, limits: Floats) -> Counts:
    """How many of each of rows (R, n), rising, are at most each of limits (m,): (R, m)."""
    if is_tensor(rows):
        many = limits.expand(len(rows), -1).contiguous()
        return namespace(rows).searchsorted(rows, many, side="right")
    return np.stack([np.searchsorted(row, limits, side="right") for row in rows])


def _sum(values: torch.Tensor) -> torch.Tensor:
    # torch splits one long sum among its threads, a sum per row never: so the rounding is always the same.
    padding = values.new_zeros(-len(values) % BLOCK)
    return namespace(values).concat([values, padding]).reshape(-1, BLOCK).sum(axis=1).sum()
