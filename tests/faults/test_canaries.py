"""No text, key or name of a user in anything that the guard says."""

import asyncio
import logging
from collections.abc import Callable

import pytest
from faulty.expert import FAULTS, hang, running
from faulty.guards import delegating, openai_expert

from ctd_guardrail.config import CtdConfig
from ctd_guardrail.experts.guarded import GuardedExpert, health_of
from ctd_guardrail.guards.breaker import CircuitBreaker
from ctd_guardrail.guards.buckets import MemoryStore
from ctd_guardrail.guards.spend_cap import Cap, SpendCaps
from ctd_guardrail.overrides import OverridableCascade

CONFIG = {"policy": "p", "expert": {"type": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "judge"}}


async def test_no_canary_is_found_in_logs_decisions_counts_and_errors(
    trials: Callable[..., int],
    record: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "canary-key")
    monkeypatch.setattr("ctd_guardrail.experts.guarded._FIRST_PAUSE_S", 0.001)
    total, said = trials(full=1000, reduced=100), []
    config = CtdConfig.model_validate(CONFIG | {"allow_overrides": ["alpha"]})
    with running(hang) as judge, caplog.at_level(logging.DEBUG):
        guards = []
        for fault in (*FAULTS, "nowhere"):
            url = judge.failing_url(fault) if fault in FAULTS else "http://127.0.0.1:1/v1"
            caps = SpendCaps([Cap("calls", 60, 60.0, 60, per_principal=True)], MemoryStore(), max_principals=10)
            expert = GuardedExpert(
                openai_expert(
                    url, api_key_env="JUDGE_API_KEY", timeout_s=0.02 if fault in {"hang", "slow_drip"} else 30
                ),
                breaker=CircuitBreaker(failures=20, open_s=0.05, trials=1, health=health_of),
                caps=caps,
                attempts=2,
                timeout_s=0.02 if fault in {"hang", "slow_drip"} else 30,
            )
            guards.append(
                OverridableCascade(config, {None: expert}, lambda *parts: delegating(parts[1], tally=parts[2]))
            )

        async def ask(i: int) -> str:
            guard = guards[i % len(guards)]
            messages = [{"role": "user", "content": f"canary-text {i}" if i % 7 else [{"canary-text": i}]}]
            overrides = {"canary-text": i} if i % 11 == 0 else None
            try:
                return repr(await guard.check(messages, overrides, principal=f"canary-name {i % 20}"))
            except Exception as error:  # noqa: BLE001  # it would be said as well
                return repr(error)

        for start in range(0, total, 20):
            said += await asyncio.gather(*(ask(i) for i in range(start, min(start + 20, total))))
        said += [repr(guard.tally.snapshot()) for guard in guards]
        for guard in guards:
            await guard.aclose()
    lines = [f"{line.name} {line.getMessage()} {line.exc_text or ''} {vars(line)}" for line in caplog.records]
    found = [text for text in (*said, *lines) if "canary-" in text]
    assert not found, found[0]
    assert len({line.name for line in caplog.records}) >= 3
    record("canaries", total, total)
