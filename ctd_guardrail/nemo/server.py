"""NeMo's server of several configurations: it serves none without the rail by mistake."""

from __future__ import annotations

import inspect
from functools import wraps
from typing import Any, Final

from nemoguardrails import RailsConfig

from ctd_guardrail.assembly.folder import UNGUARDED
from ctd_guardrail.nemo.catalog import changed
from ctd_guardrail.nemo.gate import Gate

__all__ = ["mark_guarded", "refuse_unguarded_configurations"]

_GATE: Final = "ctd_gate"


def mark_guarded(engine: object, gate: Gate) -> None:
    """Mark an engine of NeMo as guarded by a gate."""
    setattr(engine, _GATE, gate)


def refuse_unguarded_configurations() -> None:
    """Let NeMo's server answer a request for a configuration without the rail with an error.

    A configuration without the rail is served only if it contains ``custom_data: {ctd: unguarded}``. Calling
    this again changes nothing.

    Raises:
        HostError: This version of NeMo Guardrails finds its configurations in another way.
    """
    from nemoguardrails.server import api  # noqa: PLC0415  # it is running, for it has called `init`

    find: Any = getattr(api, "_get_rails", None)
    if not inspect.iscoroutinefunction(find):
        raise changed("finds the configurations of its server")
    if getattr(find, _GATE, False):
        return

    @wraps(find)
    async def _get_rails(*args: Any, **kwargs: Any) -> Any:
        rails = await find(*args, **kwargs)
        engine = getattr(rails, "rails_engine", rails)
        if getattr(engine, _GATE, None) is None and not _is_unguarded(engine.config):
            raise ValueError(
                "The configuration has no 'ctd check input' rail. Add it, or write custom_data: {ctd: unguarded}."
            )
        return rails

    setattr(_get_rails, _GATE, True)
    setattr(api, "_get_rails", _get_rails)  # noqa: B010  # NeMo has no hook for the configuration that a client names


def _is_unguarded(config: RailsConfig) -> bool:
    return bool(config.custom_data.get("ctd") == UNGUARDED)
