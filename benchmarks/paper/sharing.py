"""Computes equal fits once.

With several experts and recipes on the same rows, training repeats regressions, which take most of its time. Many of
them read activations and labels, but no expert scores. Settings whose safety probe has the same source share its fit.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TypeVar
from unittest.mock import patch

import numpy as np

from calibrate.features.pooled_rows import PooledRows
from calibrate.train.logistic import fit_logistic
from calibrate.train.ridge import fit_ridge
from calibrate.train.rows import TrainingRows
from calibrate.train.targets import Target
from calibrate.train.tokens import fit_tokens
from calibrate.train.windows import choose_windows

__all__ = ["shared_fits"]

Result = TypeVar("Result")

# Names under which training calls the functions.
_USES: Final[dict[str, Callable[..., Any]]] = {
    "calibrate.train.linear.fit_logistic": fit_logistic,
    "calibrate.train.linear.fit_ridge": fit_ridge,
    "calibrate.train.windows.fit_logistic": fit_logistic,
    "calibrate.train.learner.choose_windows": choose_windows,
    "calibrate.train.learner.fit_tokens": fit_tokens,
    "benchmarks.paper.trial.fit_logistic": fit_logistic,
    "benchmarks.paper.delegation.fit_logistic": fit_logistic,
}
# Number of results in memory. Each takes a tenth of a megabyte, but a fit to tokens keeps its tokens.
_KEPT: Final = 4096
_KEPT_TOKENS: Final = 8


@contextmanager
def shared_fits() -> Iterator[None]:
    """Remember the last fits of training by their arguments. Results do not change."""
    shared = {
        function: _remember(function, _KEPT_TOKENS if function is fit_tokens else _KEPT)
        for function in set(_USES.values())
    }
    with ExitStack() as patches:
        for name, function in _USES.items():
            patches.enter_context(patch(name, shared[function]))
        yield


def _remember(function: Callable[..., Result], kept: int) -> Callable[..., Result]:
    results: OrderedDict[bytes, Result] = OrderedDict()

    def remembering(*arguments: Any, **options: Any) -> Result:
        key = _digest([*arguments, *sorted(options.items())])
        if key not in results:
            results[key] = function(*arguments, **options)
            if len(results) > kept:
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
            case TrainingRows():
                # A fit does not read the experts' scores of its rows, which come as targets.
                digest.update(_digest([value.pooled, value.labels, value.clusters]))
                digest.update(_digest([row.values.numpy() for row in value.tokens or ()]))
            case Target():
                digest.update(_digest([value.loss, value.values, value.weights]))
            case dict():
                digest.update(_digest(value.items()))
            case tuple():
                digest.update(_digest(value))
            case _:
                digest.update(repr(value).encode())
    return digest.digest()
