"""Code of the operator behind a policy: what refuses to start, and what limits it."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctd_guardrail import ConfigError, OnFailure, PolicyMismatchError, Reason, load_guard
from ctd_guardrail.policy.store import read_policy, write_policy

TEXTS = [f"{word} {other} question" for word in ("a", "an odd", "the best", "harmful") for other in "bcdefghij"]
SLOW = """
import asyncio
from ctd_guardrail.testing import FakeExpert

class Slow(FakeExpert):
    async def score(self, conversation):
        self.asked.append(conversation)
        await asyncio.Event().wait()
"""
SOURCE = """
import torch
from ctd_guardrail import Fingerprint, Ragged

class Source:
    def __init__(self, spec, **hashes):
        self.spec = spec
        self.fingerprint = Fingerprint(**hashes)

    def tokenize(self, conversation):
        return ((1, 2, 3),)

    def activations(self, windows):
        lengths = tuple(map(len, windows))
        return Ragged(torch.zeros(sum(lengths), self.fingerprint.hidden_size * len(self.spec.layers)), lengths)
"""


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def policy(rail_policy: Path, tmp_path: Path) -> str:
    """The rail's policy, as if `fake:v1` had been asked."""
    made = read_policy(rail_policy)
    manifest = made.manifest.model_dump() | {"expert": "fake:v1"}
    write_policy(tmp_path / "policy", manifest, made.probe, made.calibration)
    return "../policy"


@pytest.fixture
def fake() -> dict[str, Any]:
    return {
        "type": "python",
        "factory": "ctd_guardrail.testing:FakeExpert",
        "options": {"identity": "fake:v1"},
    }


async def test_an_expert_with_the_policys_identity_judges_what_is_delegated(
    make_rail_folder: Callable[..., Path], policy: str, fake: dict[str, Any]
) -> None:
    options = fake["options"] | {"default": 1.0}
    async with load_guard(make_rail_folder(policy=policy, expert=fake | {"options": options})) as guard:
        reasons = [(await guard.check(user(text))).reason for text in TEXTS]
    assert Reason.EXPERT_UNSAFE in reasons
    assert not any(reason.is_failure for reason in reasons)


def test_an_expert_with_another_identity_than_the_policys_refuses_to_start(
    make_rail_folder: Callable[..., Path], policy: str, fake: dict[str, Any]
) -> None:
    folder = make_rail_folder(policy=policy, expert=fake | {"options": {"identity": "another"}})
    with pytest.raises(PolicyMismatchError, match="but the configured expert is 'another'"):
        load_guard(folder)


@pytest.mark.parametrize("key", ["expert", "source"])
def test_a_factory_that_is_not_there_is_an_error_with_folder_key_and_hint(
    make_rail_folder: Callable[..., Path], fake: dict[str, Any], key: str
) -> None:
    folder = make_rail_folder(**{"expert": fake, key: {"type": "python", "factory": "absent.py:make"}})
    with pytest.raises(ConfigError) as raised:
        load_guard(folder)
    assert str(raised.value).startswith(f"{folder}: {key}.factory: there is no file {folder / 'absent.py'}. ")
    assert (raised.value.file, raised.value.key) == (folder, f"{key}.factory")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"expert": {"timeout_s": 0.05}}, Reason.EXPERT_TIMEOUT),
        ({"expert_enabled": False}, Reason.EXPERT_DISABLED),
        ({"cap": {"calls": 1, "per_s": 3600, "burst": 1}, "expert": {"timeout_s": 0.05}}, Reason.CAP_EXHAUSTED),
    ],
)
async def test_it_has_the_limits_and_the_failure_policies_of_every_expert(
    make_rail_folder: Callable[..., Path], fake: dict[str, Any], settings: dict[str, Any], reason: Reason
) -> None:
    expert = fake | {"factory": "slow.py:Slow"} | settings.pop("expert", {})
    folder = make_rail_folder(expert=expert, on_failure={"default": "block", reason.value: "allow"}, **settings)
    (folder / "slow.py").write_text(SLOW)
    async with load_guard(folder) as guard:
        decisions = await asyncio.gather(*[guard.check(user(text)) for text in TEXTS])
    failed = [decision for decision in decisions if decision.reason is reason]
    assert failed
    assert {decision.on_failure for decision in failed} == {OnFailure.ALLOW}
    assert not any(decision.is_blocking for decision in failed)


def test_a_source_with_other_hashes_than_the_policys_refuses_to_start(
    make_rail_folder: Callable[..., Path], rail_policy: Path, fake: dict[str, Any]
) -> None:
    hashes = read_policy(rail_policy).manifest.fingerprint.model_dump()
    source = {"type": "python", "factory": "source.py:Source", "options": hashes}
    folder = make_rail_folder(expert=fake, source=source)
    (folder / "source.py").write_text(SOURCE)
    assert load_guard(folder).policy.manifest.fingerprint.model_dump() == hashes
    source["options"] = hashes | {"weights_sha256": "0" * 64}
    with pytest.raises(PolicyMismatchError, match="weights_sha256"):
        load_guard(make_rail_folder(expert=fake, source=source))


def test_a_policy_does_not_name_the_code_that_made_its_scores(rail_policy: Path) -> None:
    content = (rail_policy / "policy.json").read_text()
    assert "factory" not in content
    assert ".py:" not in content
