"""Run by `nemoguardrails server --config .` before it reads any configuration: the rail for the IORails engine."""

from ctd_guardrail.nemo.config import init

__all__ = ["init"]
