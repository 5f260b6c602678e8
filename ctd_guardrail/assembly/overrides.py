"""Settings that a single request changes, within the bounds that the operator sets.

A request with an override that is not allowed or not understood is blocked. If the configured value applied instead,
the caller would believe in a budget or a mode that it does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ctd_guardrail.config.override_bounds import Bounds
from ctd_guardrail.config.section import CtdConfig
from ctd_guardrail.decision import Mode, OnFailure
from ctd_guardrail.errors import OverrideError
from ctd_guardrail.policy.guarantees import Guarantee

__all__ = ["Overrides", "read_overrides"]

_Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class Overrides(BaseModel):
    """What a request may ask for; None: as configured.

    Attributes:
        alpha: Budget.
        delta: Admissible probability that calibration misses it.
        guarantee: What alpha bounds.
        horizon: Number of inputs that ``guarantee: next`` speaks of.
        mode: ``enforce`` or ``shadow``.
        expert: Name of one of ``experts``.
        on_failure: What to do with the request when the guard cannot do its work.
        max_expert_calls: Most calls of the expert for this request.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    alpha: _Share | None = None
    delta: _Share | None = None
    guarantee: Guarantee | None = None
    horizon: Annotated[int, Field(ge=1)] | None = None
    mode: Mode | None = None
    expert: str | None = None
    on_failure: OnFailure | None = None
    max_expert_calls: Annotated[int, Field(ge=0)] | None = None


def read_overrides(raw: object, config: CtdConfig, bounds: Bounds) -> Overrides:
    """Check what a request asks for.

    Args:
        raw: What stands in the request.
        config: Names the settings that a request may change.
        bounds: Limit each of them.

    Raises:
        OverrideError: It is not a mapping, or a key is unknown, not allowed, of a wrong value, or beyond its bound.
    """
    if not isinstance(raw, Mapping):
        raise OverrideError("overrides must be a mapping of settings to values")
    for name in Overrides.model_fields:
        if name in raw and name not in config.allow_overrides:
            raise OverrideError(f"{name} may not be overridden", hint="Name it in allow_overrides")
    try:
        overrides = Overrides.model_validate(dict(raw))
    except ValidationError as error:
        # An unknown key is the caller's own text, so the message names only the kind of mistake.
        first = error.errors(include_input=False)[0]
        raise OverrideError(f"an override is wrong ({first['type']})") from None
    bounds.check(alpha=overrides.alpha, delta=overrides.delta, mode=overrides.mode, on_failure=overrides.on_failure)
    if overrides.expert is not None and overrides.expert not in config.experts:
        raise OverrideError("there is no expert of this name", hint="Name it in experts")
    return overrides
