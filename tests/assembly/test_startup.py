"""A policy that is replaced while a guard starts: the guard runs the plan that it shows, or does not start."""

import asyncio
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nemoguardrails import RailsConfig

from ctd_guardrail.assembly.budget import budget_of
from ctd_guardrail.assembly.guard import Guard
from ctd_guardrail.assembly.prepared import load_guard
from ctd_guardrail.errors import PolicyError
from ctd_guardrail.nemo.guards import guard_for, section_of
from ctd_guardrail.policy.plan import plan
from ctd_guardrail.policy.store import CalibrationScores, read_policy, write_policy
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.sidecar.service import Service
from tests.support.internals import cascade_of, loaded_guard


class FileAccesses:
    """Calls back before each time that this process opens a file below a folder."""

    def __init__(self) -> None:
        self.count = 0
        self._root: str | None = None
        self._before: Callable[[int], None] = lambda _: None
        sys.addaudithook(self._hook)

    @contextmanager
    def below(self, root: Path, before: Callable[[int], None]) -> Iterator[None]:
        self.count, self._root, self._before = 0, str(root), before
        try:
            yield
        finally:
            self._root = None

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._root is None or event not in {"open", "os.listdir", "os.scandir"}:
            return
        root, path = self._root, arguments[0]
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(root):
            self._root = None  # what the callback opens is none of them
            self._before(self.count)
            self.count, self._root = self.count + 1, root


@pytest.fixture(scope="module")
def accesses() -> FileAccesses:
    return FileAccesses()  # once: an audit hook stays for the life of the process


async def by_load_guard(folder: Path, runtime: Runtime) -> tuple[Guard, dict[str, Any] | None]:
    return await asyncio.to_thread(load_guard, folder, in_service=True, runtime=runtime), None


async def by_sidecar(folder: Path, runtime: Runtime) -> tuple[Guard, dict[str, Any] | None]:
    service = Service(folder)
    await service.start()
    return loaded_guard(service), service.stats()


async def by_nemo(folder: Path, runtime: Runtime) -> tuple[Guard, dict[str, Any] | None]:
    config = await asyncio.to_thread(RailsConfig.from_path, str(folder))
    guard = await asyncio.to_thread(guard_for, config, section_of(config), None)  # type: ignore[arg-type]  # its expert is no rail
    assert isinstance(guard, Guard)
    return guard, None


@pytest.mark.parametrize("start", [by_load_guard, by_sidecar, by_nemo])
def test_a_policy_that_is_replaced_before_any_file_access_leaves_one_lambda(
    start: Callable[..., Any],
    make_rail_folder: Callable[..., Path],
    rail_policy: Path,
    tmp_path: Path,
    runtime: Runtime,
    accesses: FileAccesses,
) -> None:
    first, second, in_place = tmp_path / "first", tmp_path / "second", tmp_path / "rails" / "policy"
    policy = read_policy(rail_policy)
    for folder, spread in ((first, 0.6), (second, 0.4)):
        scores = CalibrationScores.from_rows(d=np.linspace(-0.5, spread, 200), p=np.linspace(0, 1, 200))
        write_policy(folder, policy.manifest.model_dump(exclude={"tensors_sha256"}), policy.probe, scores)
    rails = make_rail_folder(policy="policy")
    held = load_guard(make_rail_folder(policy=str(rail_policy)), runtime=runtime)  # the base model stays loaded
    make_rail_folder(policy="policy")

    def attempt(swap_before: int | None) -> float | None:
        in_place.unlink(missing_ok=True)
        in_place.symlink_to(first)

        def before(access: int) -> None:
            if access == swap_before:
                in_place.unlink()
                in_place.symlink_to(second)

        async def run() -> float | None:
            try:
                guard, stats = await start(rails, runtime)
            except PolicyError:
                return None
            running = cascade_of(guard).settings.rule.threshold
            assert guard.plan.rule.threshold == guard.watch.facts.threshold == running
            assert plan(guard.policy, budget_of(guard.config)).rule.threshold == running, "of one policy"
            assert guard.watch.facts.expected_rate == guard.plan.expected_rate
            if stats is not None:
                assert stats["expected_rate"] == guard.plan.expected_rate
            await guard.aclose()
            return float(running)

        with accesses.below(tmp_path, before):
            found = asyncio.run(run())
        gc.collect()  # a guard that is still there would be found again
        return found

    unchanged = attempt(None)
    count = accesses.count
    assert count >= 3, "configuration, manifest, tensors"
    found = [attempt(number) for number in range(count)]
    assert unchanged is not None
    assert found[0] is not None
    assert found[0] != unchanged, "all of the second policy"
    assert set(found) <= {unchanged, found[0], None}
    assert held.plan.rule.threshold not in found
