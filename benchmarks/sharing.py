"""Equal fits computed once.

With several experts and recipes on the same rows, training repeats the same logistic regressions, which take most of
its time: they read activations and labels, and no expert.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TypeVar
from unittest.mock import patch

import numpy as np

from calibrate.pooled import PooledRows
from calibrate.train.logistic import fit_logistic
from calibrate.train.windows import choose_windows

__all__ = ["shared_fits"]

Result = TypeVar("Result")

# Where training looks the two functions up.
_USES: Final = {
    "calibrate.train.linear.fit_logistic": fit_logistic,
    "calibrate.train.windows.fit_logistic": fit_logistic,
    "calibrate.train.learner.choose_windows": choose_windows,
    "trial.fit_logistic": fit_logistic,
}
_KEPT: Final = 16


@contextmanager
def shared_fits() -> Iterator[None]:
    """Remember the last fits of training by their arguments; results do not change."""
    shared = {function: _remember(function) for function in set(_USES.values())}
    with ExitStack() as patches:
        for name, function in _USES.items():
            patches.enter_context(patch(name, shared[function]))
        yield


def _remember(function: Callable[..., Result]) -> Callable[..., Result]:
    results: OrderedDict[bytes, Result] = OrderedDict()

    def remembering(*arguments: Any, **options: Any) -> Result:
        key = _digest([*arguments, *sorted(options.items())])
        if key not in results:
            results[key] = function(*arguments, **options)
            if len(results) > _KEPT:
                results.popitem(last=False)
        return results[key]

    return remembering


def _digest(values: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        match value:
            case np.ndarray():
                digest.update(f"{value.dtype}{value.shape}".encode())
                digest.update(np.ascontiguousarray(value).data)
            case PooledRows():
                digest.update(_digest([value.values, value.lengths, value.windows]))
            case tuple():
                digest.update(_digest(value))
            case _:
                digest.update(repr(value).encode())
    return digest.digest()
