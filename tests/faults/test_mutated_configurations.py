"""One mistake in an otherwise sound configuration: refused with file, key path and a hint."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ctd_guardrail.assembly.folder import read_folder
from ctd_guardrail.cli.wiring import Engine, check_wiring
from ctd_guardrail.errors import ConfigError

SOUND: dict[str, Any] = {
    "import_paths": ["ctd_guardrail/nemo"],
    "custom_data": {
        "ctd": {
            "policy": "./policy",
            "alpha": 0.1,
            "delta": 0.05,
            "guarantee": "exact",
            "criterion": "cost",
            "costs": {"missed": 5.0, "false_alarm": 1.0, "call": 0.1},
            "expert": {
                "type": "openai",
                "base_url": "http://127.0.0.1:8000/v1",
                "model": "judge",
                "timeout_s": 5,
                "scoring": "json",
                "max_concurrency": 8,
            },
            "expert_enabled": True,
            "expert_attempts": 2,
            "breaker": 5,
            "cap": [{"calls": 60, "per_s": 60.0, "burst": 10, "per": "principal"}, {"tokens": 1000, "per_s": 60.0}],
            "store": {"url_env": "REDIS_URL", "name": "production"},
            "principal": {"variable": "tenant", "header": "X-Tenant"},
            "deadline_s": 30.0,
            "mode": "enforce",
            "on_failure": {"default": "block", "expert_timeout": "probe", "cap_exhausted": "probe"},
            "on_nontext": "block",
            "on_overlong": "expert",
            "on_abstain": "block",
            "device": "cpu",
            "allow_overrides": ["alpha"],
            "self_test": {"unsafe": ["x"], "safe": ["y"]},
        }
    },
    "rails": {"input": {"flows": ["ctd check input"]}},
}
SECTION = ("custom_data", "ctd")


def keys(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from keys(child, (*path, key))


def holder(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        content = content[key]
    return content


def mutations() -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return configurations with a mistyped key or an impossible value, and where the mistake stands."""
    section = SOUND["custom_data"]["ctd"]
    for path in keys(section, SECTION):
        if isinstance(path[-1], str):
            typo = copy.deepcopy(SOUND)
            place = holder(typo, path)
            place[f"{path[-1]}x"] = place.pop(path[-1])
            yield (*path[:-1], f"{path[-1]}x"), typo
        odd = copy.deepcopy(SOUND)
        holder(odd, path)[path[-1]] = (
            {"what": ["is", "this"]} if not isinstance(holder(SOUND, path)[path[-1]], dict) else 7
        )
        yield path, odd


def test_each_mistake_is_refused_where_it_stands(
    tmp_path: Path, trials: Callable[..., int], record: Callable[..., None]
) -> None:
    mistakes = list(mutations())
    assert len(mistakes) >= 50
    mistakes = mistakes[:: trials(full=1, reduced=3)]
    (tmp_path / "config.yml").write_text(yaml.safe_dump(SOUND))
    check_wiring(read_folder(tmp_path), engine=Engine.LLMRAILS)
    held = 0
    for path, content in mistakes:
        (tmp_path / "config.yml").write_text(yaml.safe_dump(content))
        stands = ".".join(map(str, path))
        with pytest.raises(ConfigError) as caught:
            check_wiring(read_folder(tmp_path), engine=Engine.LLMRAILS)
        error = caught.value
        # A value that should be a section may be blamed on the section or on a key that it lacks, and a mistyped
        # `type` on its absence.
        places = {stands, stands.removesuffix("x")}
        is_there = any(f"{error.key}.".startswith(f"{place}.") or place.startswith(f"{error.key}.") for place in places)
        assert is_there, f"{stands}: {error}"
        held += error.file == tmp_path / "config.yml"
    record("misconfiguration", held, len(mistakes))
