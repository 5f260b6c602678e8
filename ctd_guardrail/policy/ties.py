"""Randomised ties, for delegation values that take few distinct ones (rounded, quantised or bf16 scores).

The closed form must put all equal scores on one side, so a large atom at the threshold leaves budget unused. Give every
input a uniform V that only the holder of a secret key can compute, and order by (d, V). The pairs have no ties, so the
rate follows its Beta law again. Unlike a random draw, V gives the same input the same answer. Without the key, a sender
cannot search for a variant of a text that is not delegated.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ctd_guardrail._typing import FloatArray
from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.policy.budget import Certificate, sort_scores

__all__ = ["TieThreshold", "sort_with_ties", "tie_threshold", "uniform"]


_SHORTEST_KEY = 16
_LONGEST_KEY = 64


def uniform(digest: str, key: bytes) -> float:
    """Return V in [0, 1) for an input: keyed BLAKE2b of its digest, 53 bits of it.

    Args:
        digest: Digest of the input, as :meth:`ctd_guardrail.text.conversation.Conversation.digest` returns it. Equal
            inputs share V and stay tied, which can only lower the rate.
        key: Secret of 16 to 64 bytes, the same at calibration and in deployment.

    Raises:
        ConfigError: The key is too short or too long.
    """
    if not _SHORTEST_KEY <= len(key) <= _LONGEST_KEY:
        raise ConfigError(
            f"the key has {len(key)} bytes, not {_SHORTEST_KEY} to {_LONGEST_KEY}",
            key="tie_key",
            hint="Generate one with `python -c 'import secrets; print(secrets.token_hex(32))'`",
        )
    hashed = hashlib.blake2b(digest.encode(), key=key, digest_size=8).digest()
    return (int.from_bytes(hashed) >> 11) / (1 << 53)


@dataclass(frozen=True, slots=True)
class TieThreshold:
    """The rule ``delegate iff (d, V) > (threshold, v)`` in lexicographic order.

    Attributes:
        threshold: lambda.
        v: The uniform above which an input with d = lambda is delegated.
    """

    threshold: float
    v: float

    def delegates(self, d: float, v: float) -> bool:
        """Whether an input with delegation value d and uniform v goes to the expert."""
        return (d, v) > (self.threshold, self.v)


def sort_with_ties(scores: FloatArray, uniforms: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return scores and uniforms in ascending order of (d, V), each of shape [n].

    Raises:
        DataError: The columns differ in length, or a score is NaN or infinite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    uniforms = np.asarray(uniforms, dtype=np.float64)
    if scores.shape != uniforms.shape:
        raise DataError(f"there are {uniforms.size} uniforms for {scores.size} delegation values")
    sort_scores(scores)  # for its checks
    order = np.lexsort((uniforms, scores))
    return scores[order], uniforms[order]


def tie_threshold(certificate: Certificate, scores: FloatArray, uniforms: FloatArray) -> TieThreshold:
    """Return the rule with exactly k calibration pairs above it.

    Args:
        certificate: Made by :func:`ctd_guardrail.policy.budget.certify` from ``scores``.
        scores: Delegation values ascending in (d, V), shape [n], from :func:`sort_with_ties`.
        uniforms: Their V, shape [n].
    """
    if certificate.k < 0:
        return TieThreshold(certificate.threshold, 1.0)
    index = certificate.n - 1 - certificate.k
    return TieThreshold(float(scores[index]), float(uniforms[index]))
