"""Whether an input went to the expert can be told from how long the answer took: how well, is measured."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

from ctd_guardrail.decision import Route
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.text.conversation import Conversation
from tests.support.word_guard import WordJudge, word_guard


class SlowJudge(WordJudge):
    """An expert of 2 to 12 ms, nearer than any endpoint in use."""

    def __init__(self) -> None:
        super().__init__()
        self._rng = random.Random(0)

    async def score(self, conversation: Conversation) -> ExpertScore:
        await asyncio.sleep(self._rng.uniform(0.002, 0.012))
        return await super().score(conversation)


def auc(higher: list[float], lower: list[float]) -> float:
    """Return P(a value of the first > a value of the second), ties by half."""
    pairs = [(a > b) + 0.5 * (a == b) for a in higher for b in lower]
    return sum(pairs) / len(pairs)


async def test_how_well_latency_tells_the_route(trials: Callable[..., int], record: Callable[..., None]) -> None:
    guard = word_guard(judge=SlowJudge())
    loop = asyncio.get_running_loop()
    latency: dict[Route, list[float]] = {route: [] for route in Route}
    total = trials(full=1_000, reduced=60)
    for i in range(total):
        start = loop.time()
        message: dict[str, Any] = {"role": "user", "content": f"a {'doubtful' if i % 2 else 'plain'} question {i}"}
        decision = await guard.check([message])
        latency[decision.route].append(loop.time() - start)
    measured = auc(latency[Route.EXPERT], latency[Route.PROBE])
    record(
        "timing_channel",
        len(latency[Route.EXPERT]) + len(latency[Route.PROBE]),
        total,
        figure=f"attacker's AUC {measured:.3f}: the route can be told",
    )
