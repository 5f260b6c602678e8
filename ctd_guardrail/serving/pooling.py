"""The wire format of vLLM's ``/pooling`` route.

One request carries all windows of a conversation as token ids. The answer, ``encoding_format: bytes_only``, holds only
the numbers of the windows, one window after the other. It has no header with their count, so its size must match the
request. Source: vLLM 0.33, ``entrypoints/pooling/pooling/protocol.py`` (``PoolingCompletionRequest``) and
``entrypoints/pooling/utils.py`` (``encode_pooling_bytes``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

import numpy as np

from ctd_guardrail._typing import Float32Array
from ctd_guardrail.errors import ActivationError

__all__ = ["answer_size", "read_answer", "request_body"]

_WIRE: Final = np.dtype("<f4")


def request_body(model: str, windows: Sequence[Sequence[int]]) -> bytes:
    """Return the request for the classifier's raw logits of every token.

    Args:
        model: Name of the served model.
        windows: Token ids of each window, special tokens included.
    """
    request = {
        "model": model,
        "input": [list(window) for window in windows],
        "task": "token_classify",
        "use_activation": False,
        "add_special_tokens": False,
        "encoding_format": "bytes_only",
        "embed_dtype": "float32",
        "endianness": "little",
    }
    return json.dumps(request, separators=(",", ":")).encode("ascii")


def answer_size(tokens: int, columns: int) -> int:
    """Return the bytes of the right answer."""
    return tokens * columns * _WIRE.itemsize


def read_answer(body: bytes, tokens: int, columns: int) -> Float32Array:
    """Return the columns of all tokens, shape [tokens, columns].

    Raises:
        ActivationError: There are more or fewer numbers than asked for, or one is not finite.
    """
    size = answer_size(tokens, columns)
    if len(body) != size:
        # A longer answer is not read to its end.
        found = f"{len(body)} bytes" if len(body) < size else f"more than {size} bytes"
        raise ActivationError(
            f"the engine returned {found} for {tokens} tokens of {columns} columns, not {size}",
            hint="Serve the folder that `ctd-guardrail export` wrote, with --pooler-config.task token_classify",
        )
    wire = np.frombuffer(body, dtype=_WIRE)
    values: Float32Array = wire.astype(np.float32).reshape(tokens, columns)
    if not np.isfinite(values).all():
        # Every comparison with NaN is false: it would pass for safe.
        raise ActivationError("the engine returned numbers that are not finite", hint="Use a wider dtype")
    return values
