"""Calibrate-Then-Delegate for NVIDIA NeMo Guardrails (arXiv 2604.14251).

A probe on the base model's activations screens every input, a second probe predicts where an expert would do better,
and a calibrated threshold keeps the expert's share of the inputs within a budget.

The names below are the API of this package for an app. Two more modules are public: :mod:`ctd_guardrail.budget` and
:mod:`ctd_guardrail.testing`. All other modules are internal and may change in any version. Importing this package
loads no model, no torch and no NeMo Guardrails.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ctd_guardrail._version import __version__
from ctd_guardrail.decision import Decision, Mode, OnFailure, Reason, Route, Timings, Verdict
from ctd_guardrail.errors import (
    ActivationError,
    ActivationUnavailableError,
    BreakerOpenError,
    CapStoreError,
    ConfigError,
    CtdError,
    DataError,
    DependencyError,
    ExpertCapError,
    ExpertDisabledError,
    ExpertError,
    ExpertNotAskedError,
    ExpertOverloadedError,
    ExpertTimeoutError,
    ExpertUnavailableError,
    ExpertVerdictError,
    HostError,
    InfeasibleBudgetError,
    InputError,
    NonTextError,
    OverloadedError,
    OverlongError,
    OverrideError,
    PolicyError,
    PolicyFormatError,
    PolicyIntegrityError,
    PolicyLockedError,
    PolicyMismatchError,
    StoreError,
)
from ctd_guardrail.text.conversation import Conversation, Message

if TYPE_CHECKING:
    from ctd_guardrail.activations.source import ActivationSource
    from ctd_guardrail.activations.spec import ActivationSpec, Fingerprint
    from ctd_guardrail.assembly.guard import Guard
    from ctd_guardrail.assembly.prepared import load_guard
    from ctd_guardrail.experts.protocol import Expert, ExpertScore
    from ctd_guardrail.probes.ragged import Ragged

__all__ = [
    "ActivationError",
    "ActivationSource",
    "ActivationSpec",
    "ActivationUnavailableError",
    "BreakerOpenError",
    "CapStoreError",
    "ConfigError",
    "Conversation",
    "CtdError",
    "DataError",
    "Decision",
    "DependencyError",
    "Expert",
    "ExpertCapError",
    "ExpertDisabledError",
    "ExpertError",
    "ExpertNotAskedError",
    "ExpertOverloadedError",
    "ExpertScore",
    "ExpertTimeoutError",
    "ExpertUnavailableError",
    "ExpertVerdictError",
    "Fingerprint",
    "Guard",
    "HostError",
    "InfeasibleBudgetError",
    "InputError",
    "Message",
    "Mode",
    "NonTextError",
    "OnFailure",
    "OverloadedError",
    "OverlongError",
    "OverrideError",
    "PolicyError",
    "PolicyFormatError",
    "PolicyIntegrityError",
    "PolicyLockedError",
    "PolicyMismatchError",
    "Ragged",
    "Reason",
    "Route",
    "StoreError",
    "Timings",
    "Verdict",
    "__version__",
    "load_guard",
]

# Loaded on first use: they bring pydantic, NeMo Guardrails or torch with them.
_LAZY = {
    "ActivationSource": "ctd_guardrail.activations.source",
    "ActivationSpec": "ctd_guardrail.activations.spec",
    "Expert": "ctd_guardrail.experts.protocol",
    "ExpertScore": "ctd_guardrail.experts.protocol",
    "Fingerprint": "ctd_guardrail.activations.spec",
    "Guard": "ctd_guardrail.assembly.guard",
    "Ragged": "ctd_guardrail.probes.ragged",
    "load_guard": "ctd_guardrail.assembly.prepared",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
