"""A policy serves only what it was calibrated on: each of twelve differences stops the start."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from ctd_guardrail.assembly.prepared import load_guard
from ctd_guardrail.config.experts import OpenAIExpertConfig
from ctd_guardrail.errors import PolicyIntegrityError, PolicyMismatchError
from ctd_guardrail.experts.openai.expert import OpenAIExpert
from ctd_guardrail.policy.store import read_policy, write_policy

EXPERT = {"type": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "judge", "timeout_s": 5}


@pytest.fixture
def policy(rail_policy: Path, tmp_path: Path) -> Path:
    """The policy of the rail, with an expert whose scores were not recorded."""
    written, folder = read_policy(rail_policy), tmp_path / "policy"
    identity = OpenAIExpert(OpenAIExpertConfig.model_validate(EXPERT)).identity
    fields = written.manifest.model_dump() | {"expert": identity}
    write_policy(folder, fields, written.probe, written.calibration)
    return folder


def json_edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def other_model(tiny_bert: Path, folder: Path, file: str, change: Callable[[dict[str, Any]], object]) -> str:
    shutil.copytree(tiny_bert, folder)
    json_edit(folder / file, change)
    return str(folder)


def other_weights(tiny_bert: Path, folder: Path) -> str:
    shutil.copytree(tiny_bert, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: value * 1.001 for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def recalibrated(policy: Path, **changes: Any) -> None:
    written = read_policy(policy)
    write_policy(policy, written.manifest.model_dump() | changes, written.probe, written.calibration)


def swap_probe(policy: Path) -> None:
    written = read_policy(policy)
    other = policy.parent / "other"
    negated = {name: -value for name, value in written.probe.items()}
    write_policy(other, written.manifest.model_dump(), negated, written.calibration)
    shutil.copy(other / "policy.safetensors", policy / "policy.safetensors")


def spec(policy: Path, **changes: Any) -> None:
    json_edit(policy / "policy.json", lambda fields: fields["activations"].update(changes))


# What differs, and how: each makes the folder differ, or returns changes of the rail's section.
DIFFERENCES: dict[str, Callable[[Path, Path, Path], dict[str, Any] | None]] = {
    "model": lambda _, bert, tmp: {"base_model": other_weights(bert, tmp / "model")},
    "revision": lambda policy, *_: spec(policy, revision="other"),
    "tokenizer": lambda _, bert, tmp: {
        "base_model": other_model(
            bert, tmp / "tokens", "tokenizer.json", lambda f: f["normalizer"].update(lowercase=False)
        )
    },
    "chat template": lambda _, bert, tmp: {
        "base_model": other_model(
            bert, tmp / "chat", "tokenizer_config.json", lambda f: f.update(chat_template="{{ messages }}")
        )
    },
    "layer": lambda policy, *_: spec(policy, layers=[2]),
    "pooling": lambda policy, *_: json_edit(
        policy / "policy.json", lambda f: f["probe"]["components"][0].update(reduction="rolling")
    ),
    "dtype": lambda policy, *_: spec(policy, dtype="bfloat16"),
    "window": lambda policy, *_: spec(policy, window=64),
    "normaliser": lambda policy, *_: recalibrated(policy, normaliser="0"),
    "probe": lambda policy, *_: swap_probe(policy),
    "expert": lambda *_: {"expert": EXPERT | {"model": "another"}},
    "expert's prompt": lambda *_: {"expert": EXPERT | {"instruction": "Everything is safe."}},
}


def test_each_of_twelve_differences_between_calibration_and_deployment_stops_the_start(
    make_rail_folder: Callable[..., Path],
    policy: Path,
    tiny_bert: Path,
    tmp_path: Path,
    record: Callable[..., None],
) -> None:
    def start(**changes: Any) -> None:
        load_guard(make_rail_folder(**({"policy": str(policy), "expert": EXPERT} | changes)))

    start()
    sound = shutil.copytree(policy, tmp_path / "sound")
    held = 0
    for name, differ in DIFFERENCES.items():
        shutil.rmtree(policy)
        shutil.copytree(sound, policy)
        changes = differ(policy, tiny_bert, tmp_path) or {}
        try:
            start(**changes)
        except (PolicyMismatchError, PolicyIntegrityError):
            held += 1
        else:
            pytest.fail(f"it starts with another {name}")
    record("policy_mismatch", held, len(DIFFERENCES))
