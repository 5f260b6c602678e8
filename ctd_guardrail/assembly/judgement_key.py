"""The key under which decisions are remembered: a hash of everything that a judgement depends on beside the unit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum

from pydantic import BaseModel, SecretBytes

from ctd_guardrail.cascade.settings import CascadeSettings, is_judgement
from ctd_guardrail.policy.manifest import Manifest

__all__ = ["judgement_key"]


def judgement_key(settings: CascadeSettings, *, policy: Manifest, expert: str, source: str | None) -> str:
    """Return the key of a cascade's decisions.

    It covers every field of the settings that is not marked as one that changes no judgement, and is the same in every
    process: a receipt for a refusal is signed with it.

    Args:
        settings: The settings of the cascade.
        policy: The policy's manifest, which holds the hash of its tensors.
        expert: Identity of the expert.
        source: The serving engine of the base model; None: it runs in this process.

    Raises:
        TypeError: A setting is of a type that has no canonical form here.
    """
    covered = {each.name: _canonical(getattr(settings, each.name)) for each in fields(settings) if is_judgement(each)}
    parts = {"settings": covered, "policy": policy.model_dump_json(), "expert": expert, "source": source}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _canonical(value: object) -> list[object]:
    """Return a value as JSON in which two values differ if and only if they are not equal."""
    form: object
    match value:
        case Enum():
            form = value.value
        case None | bool() | int() | str():
            form = value
        case float():
            form = value.hex()
        case SecretBytes():
            form = hashlib.sha256(value.get_secret_value()).hexdigest()
        case BaseModel():
            form = _mapping({field: getattr(value, field) for field in type(value).model_fields})
        case tuple() | list():
            form = [_canonical(each) for each in value]
        case Mapping():
            form = _mapping(value)
        case _ if is_dataclass(value):
            form = _mapping({field.name: getattr(value, field.name) for field in fields(value) if field.compare})
        case _:
            raise TypeError(f"a setting of type {type(value).__name__} has no canonical form")
    return [type(value).__name__, form]


def _mapping(value: Mapping[str, object]) -> dict[str, object]:
    return {str(key): _canonical(each) for key, each in value.items()}
