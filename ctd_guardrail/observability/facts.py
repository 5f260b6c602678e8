"""The constants of a guard in service."""

from __future__ import annotations

from dataclasses import dataclass

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
        expected_rate: Share of the inputs that is expected at the expert, audits included.
    """

    guard: str
    policy: str
    alpha: float
    delta: float
    threshold: float
    expected_rate: float

    @property
    def labels(self) -> dict[str, str]:
        """The attributes of this guard's metrics."""
        return {"guard": self.guard, "policy": self.policy}
