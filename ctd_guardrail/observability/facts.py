"""The constants of a guard in service."""

from __future__ import annotations

from dataclasses import dataclass

from ctd_guardrail.policy.turns import BudgetUnit

__all__ = ["Facts"]


@dataclass(frozen=True, slots=True)
class Facts:
    """A guard's policy and budget.

    Attributes:
        guard: Name of the configuration's folder.
        policy: First 12 hexadecimal digits of the hash of the policy's tensors: its name in metrics and audit log.
        alpha: The budget, audits included.
        delta: Probability that calibration misses it.
        threshold: lambda; infinite where nothing is delegated.
        expected_rate: Calls that are expected, audits included, in the unit of alpha.
        unit: What alpha is a share or a number of.
        max_turns: Largest number of turns of a conversation that the certificate assumes.
        max_calls: Largest number of calls of a request; None: no limit.
    """

    guard: str
    policy: str
    alpha: float
    delta: float
    threshold: float
    expected_rate: float
    unit: BudgetUnit = BudgetUnit.TURN
    max_turns: int = 1
    max_calls: int | None = 2

    @property
    def labels(self) -> dict[str, str]:
        """The attributes of this guard's metrics."""
        return {"guard": self.guard, "policy": self.policy}
