"""Enforcement for a share of the conversations."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import SecretBytes

from ctd_guardrail.policy.ties import uniform
from ctd_guardrail.text.conversation import Context, Conversation, History

__all__ = ["Rollout"]


@dataclass(frozen=True, slots=True)
class Rollout:
    """Draws conversations or principals by a keyed hash.

    The first turn of a conversation is hashed, so a conversation stays on its side while it grows.

    Attributes:
        share: Share of the conversations for which verdicts count, in [0, 1].
        key: Secret of 16 to 64 bytes, so that clients cannot find out whether they are enforced.
        by_principal: Whether all conversations of a principal are on one side. Conversations without a principal are
            drawn one by one.
    """

    share: float
    key: SecretBytes
    by_principal: bool = False

    def enforces(self, conversation: Conversation, principal: str | None = None) -> bool:
        """Return whether verdicts on a conversation count.

        Args:
            conversation: The conversation.
            principal: Principal of the request; None if it is unknown.
        """
        if self.by_principal and principal is not None:
            drawn = f"rollout principal {principal}"
        else:
            drawn = f"rollout {History(Context.LAST_TURN).digest(conversation.turns()[0])}"
        return uniform(drawn, self.key.get_secret_value()) < self.share
