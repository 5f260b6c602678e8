"""Requests that come together leave together."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from nemoguardrails import RailsConfig
from nemoguardrails.guardrails.iorails import IORails

from ctd_guardrail.activations.huggingface import HuggingFaceSource
from ctd_guardrail.nemo import iorails


async def test_concurrent_calls_of_iorails_form_one_batch(
    make_rail_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    is_busy, may_go_on = threading.Event(), threading.Event()
    compute = HuggingFaceSource.activations

    def activations(self: HuggingFaceSource, windows: Sequence[tuple[int, ...]]) -> Any:
        batches.append(len(windows))
        is_busy.set()
        may_go_on.wait()
        return compute(self, windows)

    iorails.install()
    async with IORails(RailsConfig.from_path(str(make_rail_folder()))) as app:

        async def check(number: int) -> str:
            result = await app.check_async([{"role": "user", "content": f"question {number}"}])
            return result.status.value

        await check(-1)  # loads the base model
        monkeypatch.setattr(HuggingFaceSource, "activations", activations)
        first = asyncio.create_task(check(0))
        await asyncio.to_thread(is_busy.wait)
        others = [asyncio.create_task(check(number)) for number in range(1, 33)]
        # The device is at work all the while: by then every request has come as far as it can.
        for _ in range(100):
            await asyncio.sleep(0)
        may_go_on.set()
        await asyncio.gather(first, *others)
    assert batches == [1, 32]
