"""Cascades around a base model of fixed scores, where a test is about everything behind it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ctd_guardrail.activations.scorer import Scored
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.config.experts import OpenAIExpertConfig
from ctd_guardrail.errors import OverlongError
from ctd_guardrail.experts.bounded.bounded_expert import BoundedExpert
from ctd_guardrail.experts.build import build_expert
from ctd_guardrail.text.conversation import Conversation
from tests.support.cascades import CountedCascade, make_cascade

__all__ = ["FixedEngine", "delegating", "openai_expert"]


class FixedEngine:
    """Finds `harmful` unsafe, every input but a `plain` one worth the expert, and one of 10,000 characters overlong."""

    spec = ActivationSpec(model="model", layers=(1,), max_tokens=10_000)

    async def run(self, unit: Conversation, head: Any) -> Scored:
        text = unit.plain_text()
        if len(text) > self.spec.max_tokens:
            raise OverlongError("too long")
        p, d = 0.9 if "harmful" in text else 0.1, -1.0 if "plain" in text else 1.0
        return Scored(np.array([[p, d]]), queue_ms=0.0, forward_ms=0.0)


def openai_expert(base_url: str, **settings: Any) -> BoundedExpert:
    """Return an expert with the limits of its section."""
    return build_expert(OpenAIExpertConfig(type="openai", base_url=base_url, model="judge", **settings))


def delegating(expert: Any, **settings: Any) -> CountedCascade:
    """Return a cascade that asks the expert about all but `plain` inputs; keyword arguments are of `make_cascade`."""
    return make_cascade(
        **{
            "scorer": FixedEngine(),
            "probes": lambda ragged: ragged.values,
            "expert": expert if isinstance(expert, BoundedExpert) else BoundedExpert(expert),
        }
        | settings
    )
