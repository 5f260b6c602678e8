"""Calibrate-Then-Delegate for NVIDIA NeMo Guardrails (arXiv 2604.14251).

A probe on the base model's activations screens every input, a second probe predicts where an expert would do better,
and a calibrated threshold keeps the expert's share of the inputs within a budget. Importing this package loads no
model and no torch.
"""

from importlib.metadata import PackageNotFoundError, version

from ctd_guardrail.decision import Decision, OnFailure, Reason, Route, Timings, Verdict
from ctd_guardrail.errors import CtdError
from ctd_guardrail.text.conversation import Conversation, Message

__all__ = [
    "Conversation",
    "CtdError",
    "Decision",
    "Message",
    "OnFailure",
    "Reason",
    "Route",
    "Timings",
    "Verdict",
    "__version__",
]

try:
    __version__ = version("ctd-guardrail")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
