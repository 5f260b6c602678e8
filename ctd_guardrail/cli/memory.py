"""Which memory a configuration uses, and what follows for its budget, in words."""

from __future__ import annotations

from ctd_guardrail.config.section import CtdConfig

__all__ = ["describe_memory"]


def describe_memory(config: CtdConfig) -> str:
    """Return which processes remember together, for operators."""
    if config.store is not None and config.store.key_env is not None:
        return f"shared by all processes of the store, under the name {config.store.name!r}"
    return (
        "each process remembers by itself. If you run replicas, send all requests of a conversation to one of them, or "
        "share the memory (`store.key_env`). Otherwise turns are judged again: with conversations of 10 turns, 4 "
        "replicas make 2.8 times the calls"
    )
