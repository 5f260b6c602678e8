"""Run by `nemoguardrails server --config .` before it reads any configuration: the rail for the IORails engine."""

from ctd_guardrail.nemo import init

__all__ = ["init"]
