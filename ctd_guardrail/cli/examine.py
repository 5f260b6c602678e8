"""The checks of ``ctd-guardrail doctor`` on a configuration that is fully loaded."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from ctd_guardrail.assembly.folder import RailFolder, read_folder
from ctd_guardrail.assembly.guard import Guard
from ctd_guardrail.assembly.prepared import prepare_folder
from ctd_guardrail.assembly.self_test import SelfTestResult, self_test, try_expert
from ctd_guardrail.assembly.store import ask_memory
from ctd_guardrail.cli.memory import describe_memory
from ctd_guardrail.cli.wiring import Engine, check_wiring
from ctd_guardrail.config.section import CtdConfig
from ctd_guardrail.config.source import VllmSourceConfig
from ctd_guardrail.decision import Mode, OnFailure
from ctd_guardrail.errors import CtdError, StoreError

__all__ = ["Finding", "Outcome", "examine"]

_PACKAGES: Final = ("ctd-guardrail", "nemoguardrails", "torch", "transformers")


class Outcome(StrEnum):
    """Result of a check. An ``error`` means that the rail is not ready."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check and its result.

    Attributes:
        outcome: The result.
        subject: The part that was checked.
        text: The result in words; it never holds a text that users wrote.
    """

    outcome: Outcome
    subject: str
    text: str

    def to_dict(self) -> dict[str, str]:
        """Return the finding as plain JSON values."""
        return {key: str(value) for key, value in asdict(self).items()}


async def examine(folder: Path, *, engine: Engine = Engine.AUTO, deadline_s: float = 30.0) -> list[Finding]:
    """Load a configuration folder and check all its parts.

    Args:
        folder: NeMo Guardrails configuration folder.
        engine: NeMo's engine that will run it.
        deadline_s: Seconds for one call of an expert.

    Raises:
        CtdError: The configuration, the policy, the base model or the expert is not usable.
    """
    rail = read_folder(folder)
    guard = await asyncio.to_thread(prepare_folder(rail).load)
    try:
        return [
            *_versions(),
            _wiring(rail, engine),
            *_doors(),
            *_budget(guard),
            *_base_model(guard),
            *_settings(guard),
            await _memory(guard),
            *[await _expert(guard, name, deadline_s) for name in guard.experts],
            *[_tested(result) for result in await self_test(guard)],
        ]
    finally:
        await guard.aclose()


def _versions() -> Iterator[Finding]:
    for package in _PACKAGES:
        try:
            yield Finding(Outcome.INFO, package, version(package))
        except PackageNotFoundError:
            yield Finding(Outcome.INFO, package, "not installed")


def _doors() -> Iterator[Finding]:
    for door, packages in (("NeMo Guardrails", ("nemoguardrails",)), ("sidecar", ("fastapi", "uvicorn"))):
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        text = f"not installed: {', '.join(missing)}" if missing else "available"
        yield Finding(Outcome.INFO, f"door: {door}", text)


def _wiring(rail: RailFolder, engine: Engine) -> Finding:
    try:
        check_wiring(rail, engine=engine)
    except CtdError as error:
        # The sidecar needs no wiring, so this alone is no error.
        return Finding(Outcome.WARNING, "wiring in NeMo", str(error))
    return Finding(Outcome.OK, "wiring in NeMo", "the rail is found and called")


def _budget(guard: Guard) -> Iterator[Finding]:
    certificate = guard.plan.certificate
    yield Finding(
        Outcome.OK,
        "budget",
        f"{guard.plan.statement}, with confidence "
        f"{1 - certificate.delta:.1%} ({certificate.guarantee}, {guard.plan.data}); "
        f"{guard.plan.expectation}",
    )
    yield Finding(Outcome.INFO, "smallest alpha", f"{guard.plan.smallest_alpha} with these rows at this delta")


def _base_model(guard: Guard) -> Iterator[Finding]:
    manifest = guard.policy.manifest
    fingerprint = manifest.fingerprint
    source = guard.config.source
    if source is not None:
        # The inputs below show whether the engine serves it: each waits until the engine has proven itself.
        if isinstance(source, VllmSourceConfig):
            place = f"served as {source.model!r} by vLLM"
        else:
            place = f"computed by {source.factory}"
        yield Finding(Outcome.INFO, "base model", f"{manifest.activations.model}, {place}")
        return
    yield Finding(
        Outcome.OK,
        "base model",
        f"{guard.config.base_model or manifest.activations.model}, layers "
        f"{', '.join(map(str, manifest.activations.layers))}: its fingerprint is the policy's "
        f"({fingerprint.weights_sha256[:12]})",
    )
    yield Finding(Outcome.INFO, "device", str(guard.device))


def _settings(guard: Guard) -> Iterator[Finding]:
    config = guard.config
    if config.mode is Mode.SHADOW:
        yield Finding(Outcome.WARNING, "mode", "shadow: everything is let through")
    else:
        yield Finding(Outcome.OK, "mode", "enforce")
    yield _failures(config)
    for name in ("on_nontext", "on_overlong", "on_abstain"):
        value = getattr(config, name)
        outcome = Outcome.WARNING if value == "allow" else Outcome.INFO
        yield Finding(outcome, name, str(value))
    for cap in config.cap:
        room = f"{cap.burst or cap.calls} at once"
        parts = (f"{cap.calls} calls, {room}" if cap.calls else "", f"{cap.tokens} tokens" if cap.tokens else "")
        text = f"{' and '.join(part for part in parts if part)} in {cap.per_s:g} s, for {cap.per}"
        yield Finding(Outcome.INFO, "cap", text)
    if config.allow_overrides:
        yield Finding(Outcome.INFO, "allow_overrides", ", ".join(config.allow_overrides))


async def _memory(guard: Guard) -> Finding:
    text = describe_memory(guard.config)
    try:
        has_server = await ask_memory(guard.memory)
    except StoreError as error:
        # Without it the rail works: each process remembers by itself.
        return Finding(Outcome.WARNING, "memory", f"{text}. {error}")
    return (
        Finding(Outcome.OK, "memory", f"{text}; the server answers")
        if has_server
        else Finding(Outcome.INFO, "memory", text)
    )


def _failures(config: CtdConfig) -> Finding:
    """Return the causes for which ``on_failure`` allows an input."""
    if isinstance(config.on_failure, OnFailure):
        stated = {"every cause": config.on_failure}
    else:
        stated = config.on_failure.model_dump(exclude_none=True)
    text = ", ".join(f"{cause}: {policy}" for cause, policy in stated.items())
    outcome = Outcome.WARNING if OnFailure.ALLOW in stated.values() else Outcome.INFO
    return Finding(outcome, "on_failure", text)


async def _expert(guard: Guard, name: str | None, deadline_s: float) -> Finding:
    subject, expert = "expert" if name is None else f"expert {name}", guard.experts[name]
    if not expert.is_enabled:
        return Finding(Outcome.WARNING, subject, "it is switched off: expert_enabled is false")
    try:
        seconds = await try_expert(expert, deadline_s=deadline_s)
    except CtdError as error:
        return Finding(Outcome.ERROR, subject, str(error))
    return Finding(Outcome.OK, subject, f"{expert.identity} answered in {seconds:.2f} s")


def _tested(result: SelfTestResult) -> Finding:
    decision = result.decision
    outcome = Outcome.OK if result.is_right else Outcome.WARNING if result.has_passed else Outcome.ERROR
    text = f"{decision.verdict} ({decision.reason}, {decision.timings.total_ms:.0f} ms)"
    return Finding(outcome, result.name, text if result.is_right else f"{text}, expected {result.expected}")
