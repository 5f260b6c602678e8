"""No field that a decision depends on can be edited: the list of the others is complete because all else is hashed."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctd_guardrail.assembly.prepared import load_guard
from ctd_guardrail.errors import PolicyError, PolicyIntegrityError
from ctd_guardrail.policy.manifest import DESCRIBES, Manifest
from ctd_guardrail.policy.store import CalibrationScores, read_policy, write_policy
from ctd_guardrail.policy.turns import TurnScores
from ctd_guardrail.runtime.runtime import Runtime
from tests.support.policies import write_plain_policy

ROWS = 60
TEXTS = ("a plain question", "a plain threat", "an odd question", "an odd and harmful wish")
MISSING = object()
Place = tuple[str | int, ...]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy in which no field has its default, and no list or mapping is empty."""
    folder = tmp_path_factory.mktemp("full")
    scores = CalibrationScores.from_rows(d=np.arange(float(ROWS)), p=np.full(ROWS, 0.5))
    plain = write_plain_policy(folder, rows=ROWS, scores=scores)
    look = {
        "created_at": dt.datetime(2026, 2, 1, tzinfo=dt.UTC),
        "file": "traffic.csv",
        "sha256": "d" * 64,
        "rows": ROWS,
        "alpha": 0.1,
        "delta": 0.1,
        "delta_spent": 0.05,
        "k": 2,
        "threshold": 57.0,
        "unit": "conversation",
        "conversations": ROWS,
        "max_turns": 20,
        "method": "betting",
        "growing": "f" * 64,
        "continues": True,
        "drops_risks": True,
    }
    fields = plain.manifest.model_dump() | {
        "versions": {"python": "3.11"},
        "context": "last_turn",
        "merge": {"weight": 0.25},
        "decision_threshold": 0.4,
        "recalibrations": [look],
        "performance": {
            "risks": [{"metric": "error", "max": 0.2}],
            "threshold": 50.0,
            "band": 0.1,
        },
        "data": [{"file": "rows.jsonl", "sha256": "e" * 64, "rows": ROWS}],
        "training": {"layers": [1]},
        "evaluation": {"auroc": 0.9},
    }
    del fields["tensors_sha256"], fields["pins_sha256"]
    write_policy(folder, fields, plain.probe, plain.calibration, turns=TurnScores(plain.calibration.d))
    read_policy(folder)
    return folder


def leaves(value: Any, path: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield where each value stands, and each list and mapping as well."""
    if path:
        yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from leaves(inner, (*path, place))


def others(value: Any) -> Iterator[Any]:
    """Yield values that could stand in the place of this one, and that it may be missing."""
    yield MISSING
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value * 0.9, value + 1, value - 1)
    elif isinstance(value, str):
        yield from (value[::-1], f"{value}0", value.replace(value[-1], "f"), "2026-03-01T00:00:00Z")
    elif isinstance(value, list):
        yield from ([], value + value[:1])
    elif isinstance(value, dict):
        yield {}
    else:
        yield from ("f", 0.5, 1)
    yield None


def edited(fields: dict[str, Any], path: Place, value: Any) -> dict[str, Any]:
    copy = json.loads(json.dumps(fields))
    place = copy
    for step in path[:-1]:
        place = place[step]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return copy


def test_every_value_that_decisions_depend_on_is_under_the_hash(full: Path, tmp_path: Path) -> None:
    shutil.copytree(full, folder := tmp_path / "policy")
    file = folder / "policy.json"
    fields = json.loads(file.read_text())
    assert set(fields) == set(Manifest.model_fields)
    by_hash: set[str] = set()
    for path, value in leaves(fields):
        for other in others(value):
            changed = edited(fields, path, other)
            file.write_text(json.dumps(changed))
            try:
                manifest = read_policy(folder).manifest
            except PolicyError as error:
                if "may be edited" in str(error):
                    by_hash.add(str(path[0]))
                continue
            same = manifest == read_policy(full).manifest
            assert same or path[0] in DESCRIBES, f"{path}: {value!r} became {other!r} unnoticed"
    # `format` has one value only, and the hashes are compared with what they are hashes of.
    assert by_hash >= set(Manifest.model_fields) - DESCRIBES - {"format", "tensors_sha256"}


def test_a_field_that_a_later_version_adds_is_under_the_hash(full: Path) -> None:
    class Later(Manifest):
        new_setting: float = 0.5

    fields = json.loads((full / "policy.json").read_text())
    assert Later.model_validate(fields).hash_pins() == fields["pins_sha256"]
    assert Later.model_validate({**fields, "new_setting": 0.6}).hash_pins() != fields["pins_sha256"]


@pytest.mark.parametrize("field", sorted(DESCRIBES))
def test_what_only_describes_changes_no_decision(field: str, make_rail_folder: Callable[..., Path]) -> None:
    folder = make_rail_folder()
    config = (folder / "config.yml").read_text()
    before = decisions(folder)
    (original,) = [line.split()[-1] for line in config.splitlines() if line.strip().startswith("policy:")]
    shutil.copytree(folder / original, copy := folder / "edited")
    (folder / "config.yml").write_text(config.replace(original, "edited"))
    other = {
        "created_at": "2020-02-02T00:00:00Z",
        "versions": {"python": "2.7"},
        "data": [{"file": "other.jsonl", "sha256": "f" * 64, "rows": 3}],
        "training": {"layers": "another account"},
        "evaluation": {"auroc": 0.01},
    }[field]
    fields = json.loads((copy / "policy.json").read_text())
    assert fields[field] != other
    (copy / "policy.json").write_text(json.dumps(fields | {field: other}))
    assert decisions(folder) == before


def decisions(folder: Path) -> list[Any]:
    async def ask() -> list[Any]:
        guard = load_guard(folder)
        found: list[Any] = [guard.plan.rule, guard.plan.certificate]
        for text in TEXTS:
            Runtime.default().memory.clear()
            decision = await guard.check([{"role": "user", "content": text}])
            found.append((decision.verdict, decision.route, decision.reason, decision.p, decision.d))
        await guard.aclose()
        return found

    return asyncio.run(ask())


def test_a_policy_of_an_earlier_version_is_refused_with_what_to_do(full: Path, tmp_path: Path) -> None:
    shutil.copytree(full, folder := tmp_path / "policy")
    manifest = read_policy(folder).manifest
    pins = {"activations", "fingerprint", "probe", "normaliser", "context", "expert", "tensors_sha256"}
    earlier = hashlib.sha256(manifest.model_dump_json(include=pins, exclude_defaults=True).encode()).hexdigest()
    fields = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(fields | {"pins_sha256": earlier}))
    with pytest.raises(PolicyIntegrityError, match="written by an earlier version") as error:
        read_policy(folder)
    assert "ctd-calibrate run" in error.value.hint
