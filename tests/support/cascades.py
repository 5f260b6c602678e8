"""Cascades of which a test states only what it is about."""

from __future__ import annotations

import dataclasses
from typing import Any

from ctd_guardrail.cascade.cascade import Cascade
from ctd_guardrail.cascade.settings import CascadeSettings
from ctd_guardrail.decision import OnFailure
from ctd_guardrail.observability.tally import Tally
from ctd_guardrail.policy.rule import ThresholdRule

__all__ = ["CountedCascade", "make_cascade"]

_NAMES = frozenset(field.name for field in dataclasses.fields(CascadeSettings))


class CountedCascade(Cascade):
    """A cascade that counts its own events.

    Attributes:
        tally: The counters.
    """

    def __init__(self, settings: CascadeSettings, **parts: Any) -> None:
        self.tally = Tally()
        super().__init__(settings, **{"emit": self.tally, **parts})


def make_cascade(**parts: Any) -> CountedCascade:
    """Return a cascade of settings and parts; tau is 1/2, lambda 0, and failures block, where nothing else is said."""
    settings = {"rule": ThresholdRule(0.0), "decision_threshold": 0.5, "on_failure": OnFailure.BLOCK}
    settings |= {name: value for name, value in parts.items() if name in _NAMES}
    others = {name: value for name, value in parts.items() if name not in _NAMES}
    return CountedCascade(CascadeSettings(**settings), **{"probes": None} | others)
