"""Calls of the expert in the unit of the budget: certified, expected and realised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ctd_guardrail.policy.budget import Certificate
from ctd_guardrail.policy.turns import BudgetUnit, TurnScores
from ctd_guardrail.policy.unreadable import Unreadable, UnreadableTurns

__all__ = ["Calls"]

_PER: Final = {BudgetUnit.TURN: "calls per judged turn", BudgetUnit.CONVERSATION: "calls per conversation"}


@dataclass(frozen=True, slots=True)
class Calls:
    """The budget of a policy, and its use on other conversations.

    Attributes:
        certificate: The certificate in force.
        counted: Scores of the turns of the test conversations.
        threshold: The threshold that runs.
        expected: Expected number of calls in the unit of the budget.
        unreadable: Turns of the calibration conversations that the base model cannot read; None if there are none.
    """

    certificate: Certificate
    counted: TurnScores
    threshold: float
    expected: float
    unreadable: UnreadableTurns | None = None

    @property
    def realised(self) -> float:
        """Number of calls on the test conversations, in the unit of the budget."""
        return self.counted.rate_above(self.threshold, self.certificate.unit)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        certificate, unreadable = self.certificate, self.unreadable
        return {
            "unit": certificate.unit.value,
            "conversations": certificate.conversations,
            "turns": certificate.turns,
            "max_turns": certificate.max_turns,
            "method": certificate.method.value,
            "realised": self.realised,
            "test_conversations": self.counted.conversations,
            "test_turns": self.counted.turns,
            "unreadable": {cause.value: 0 if unreadable is None else unreadable.count(cause) for cause in Unreadable},
        }

    def describe(self) -> str:
        """Return the budget, its data and its use in plain sentences."""
        certificate, counted = self.certificate, self.counted
        data = _name(certificate.turns, certificate.conversations, "calibration")
        text = (
            f"Budget: alpha = {certificate.alpha:g} {_PER[certificate.unit]} at delta = {certificate.delta:g}, "
            f"certified on {data} ({certificate.method.value}).\n"
            f"k = {certificate.k}, lambda = {self.threshold:.4f}; expected {self.expected:.4f}, on "
            f"{_name(counted.turns, counted.conversations, 'test')} {self.realised:.4f}."
        )
        if self.unreadable is None:
            return text
        overlong, nontext = (self.unreadable.count(cause) for cause in Unreadable)
        share = len(self.unreadable) / (len(self.unreadable) + certificate.turns)
        return (
            f"{text}\n{len(self.unreadable):,} other turns cannot be read: {overlong:,} are too long, {nontext:,} hold "
            f"content other than text. They are {share:.2%} of all turns. on_overlong: expert and on_nontext: expert "
            "pay for them out of alpha."
        )


def _name(turns: int, conversations: int, part: str) -> str:
    return f"{turns:,} turns of {conversations:,} {part} conversations"
