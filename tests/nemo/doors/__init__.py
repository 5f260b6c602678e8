"""Requests of every shape at every door of NeMo Guardrails, against a main LLM that records what it gets."""
