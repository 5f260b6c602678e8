"""Executed by NeMo Guardrails, by path, for every configuration that imports this folder."""

from ctd_guardrail.nemo.setup import init

__all__ = ["init"]
