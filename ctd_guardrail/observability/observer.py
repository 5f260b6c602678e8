"""The seam between a guard and whatever wants to know what it does."""

from __future__ import annotations

from typing import Protocol

from ctd_guardrail.decision import Decision

__all__ = ["Observer"]


class Observer(Protocol):
    """Told of scores, decisions, audits, calls of the expert, turns judged before, and unscreened main-LLM calls.

    It is called on the request's own thread, between the decision and the answer, from several event loops and threads
    at once. It returns at once and raises nothing.
    """

    def decided(self, decision: Decision, unit: str | None) -> None:
        """Take a decision.

        Args:
            decision: The decision.
            unit: Digest of what was judged; None where that could not be read.
        """
        ...

    def routed(self, d: float, *, delegated: bool, audited: bool) -> None:
        """Take an input that the probes have scored, before anything else becomes of it.

        Args:
            d: Its delegation value.
            delegated: Whether it goes to the expert, by the rule or by the audit's coin.
            audited: Whether the coin fell on it; :meth:`audited` follows, however the request ends.
        """
        ...

    def audited(self, *, missed: bool) -> None:
        """Take the outcome of an audit.

        Args:
            missed: Whether the cascade alone lets the input pass, and the expert calls it unsafe or gives no answer.
        """
        ...

    def asked(self, attempts: int, tokens: int) -> None:
        """Take calls of the expert, answered or not.

        Args:
            attempts: Number of calls.
            tokens: Tokens billed for them, estimated from the text where the expert does not say.
        """
        ...

    def recalled(self) -> None:
        """Take a turn that had been judged before and was not judged again."""
        ...

    def unscreened(self, door: str) -> None:
        """Take a call of the main LLM for which the guard had given no verdict.

        Args:
            door: Where the call was made.
        """
        ...
