"""The rule that sends an input to the expert or leaves it with the probe."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from pydantic import SecretBytes

from ctd_guardrail.policy.budget import Certificate
from ctd_guardrail.policy.store import Policy
from ctd_guardrail.policy.ties import TieThreshold, sort_with_ties, tie_threshold, uniform
from ctd_guardrail.text.conversation import Conversation

__all__ = ["DelegationRule", "ThresholdRule", "TieBreakingRule"]


class DelegationRule(Protocol):
    """Decides between probe and expert for one input."""

    @property
    def threshold(self) -> float:
        """Lambda."""
        ...

    def delegates(self, d: float, conversation: Conversation) -> bool:
        """Whether an input with delegation value d goes to the expert."""
        ...


@dataclass(frozen=True, slots=True)
class ThresholdRule:
    """``delegate iff d > lambda``: inputs that tie with lambda stay with the probe.

    Attributes:
        threshold: lambda.
    """

    threshold: float

    def delegates(self, d: float, conversation: Conversation) -> bool:
        """Whether an input with delegation value d goes to the expert."""
        del conversation
        return d > self.threshold


@dataclass(frozen=True, slots=True)
class TieBreakingRule:
    """``delegate iff (d, V) > (lambda, v)``: inputs that tie with lambda are drawn by a keyed hash of their text.

    Attributes:
        ties: lambda and v.
        key: Secret of 16 to 64 bytes.
    """

    ties: TieThreshold
    key: SecretBytes

    @classmethod
    def from_policy(cls, policy: Policy, certificate: Certificate, key: SecretBytes) -> TieBreakingRule:
        """Give every calibration score a uniform V and take the (n - k)-th pair.

        The law of the rate needs the V to be uniform and independent of the scores. The policy
        does not hold the texts of the calibration rows, so their V are drawn. The seed comes from key and policy, so
        every replica draws the same.

        Raises:
            ConfigError: The key is too short or too long.
        """
        uniform("", key.get_secret_value())  # for its check of the key
        digest = hashlib.blake2b(policy.manifest.tensors_sha256.encode(), key=key.get_secret_value()).digest()
        draws = np.random.default_rng(int.from_bytes(digest)).random(policy.scores.turns)
        return cls(tie_threshold(certificate, *sort_with_ties(policy.scores.d, draws)), key)

    @property
    def threshold(self) -> float:
        """Lambda."""
        return self.ties.threshold

    def delegates(self, d: float, conversation: Conversation) -> bool:
        """Whether an input with delegation value d goes to the expert."""
        return self.ties.delegates(d, uniform(conversation.digest(), self.key.get_secret_value()))
