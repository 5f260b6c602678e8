"""A deployment around drawn scores: replicas of a guard, clients that send their history, and a balancer between them.

Scorer and expert return recorded scores. Everything else is the product's own: dialogue, cascade, memory, limits and
events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from ctd_guardrail.activations.scorer import Scored
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.errors import OverlongError
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.observability.events import Event
from ctd_guardrail.policy.rule import ThresholdRule
from ctd_guardrail.runtime.memory import Memory
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.text.conversation import Conversation
from tests.support.cascades import make_cascade
from tests.support.traffic import Floats, Ints, Turns

__all__ = ["Client", "CountingExpert", "Deployment", "RecordedScorer", "by_text", "name_turns", "serve"]

ANSWER: Final = "Here you are."

Messages = list[dict[str, Any]]


class RecordedScorer:
    """Returns the recorded d of the last message of a unit. A text with an infinite d has too many tokens.

    Args:
        d: Delegation value of each text.
    """

    spec = ActivationSpec(model="recorded", layers=(1,), max_tokens=1_000_000)

    def __init__(self, d: Mapping[str, float]) -> None:
        self._d = d

    async def run(self, conversation: Conversation, head: Any) -> Scored:
        d = self._d[conversation.messages[-1].content]
        if d == np.inf:
            raise OverlongError("too long")
        # In float64: the scores of a base model are float32 both in calibration and in service.
        return Scored(np.array([[0.1, d]]), queue_ms=0.0, forward_ms=0.0)  # type: ignore[arg-type]


class CountingExpert:
    """Finds everything safe.

    Attributes:
        calls: Number of calls.
    """

    identity = "recorded"

    def __init__(self) -> None:
        self.calls = 0

    async def score(self, conversation: Conversation) -> ExpertScore:
        self.calls += 1
        return ExpertScore(0.1)

    async def aclose(self) -> None:
        return None


class Deployment:
    """Replicas of one guard, each with a runtime of its own, and one expert.

    Args:
        threshold: lambda.
        d: Delegation value of each text.
        replicas: Number of replicas.
        emit: Reads the events of all replicas, beside the list.
        memories: The memory of each replica; None: that of its runtime.
        parts: Settings and parts of each replica's cascade.

    Attributes:
        expert: The expert.
        events: The events of all replicas, in order.
    """

    def __init__(
        self,
        threshold: float,
        d: Mapping[str, float],
        *,
        replicas: int = 1,
        emit: Callable[[Event], None] | None = None,
        memories: Sequence[Memory] | None = None,
        **parts: Any,
    ) -> None:
        self.expert = CountingExpert()
        self.events: list[Event] = []
        self._emit = emit
        self._runtimes = [Runtime() for _ in range(replicas)]
        common = {
            "rule": ThresholdRule(threshold),
            "scorer": RecordedScorer(d),
            "expert": self.expert,
            "emit": self._read,
            "judgement_key": "key",
        }
        self._replicas = [
            make_cascade(runtime=runtime, memory=memory, **common | parts)
            for runtime, memory in zip(self._runtimes, memories or [None] * replicas, strict=True)
        ]

    def _read(self, event: Event) -> None:
        self.events.append(event)
        if self._emit is not None:
            self._emit(event)

    def __len__(self) -> int:
        """Return the number of replicas."""
        return len(self._replicas)

    async def send(self, messages: Messages, *, replica: int = 0) -> int:
        """Send a request to a replica, and return the number of the expert's calls for it."""
        before = self.expert.calls
        await self._replicas[replica].check(messages)
        return self.expert.calls - before

    def close(self) -> None:
        for runtime in self._runtimes:
            runtime.close()


class Client:
    """A client that keeps its own history, as the apps of the OpenAI form do.

    Args:
        deployment: Answers it.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._messages: Messages = []

    async def say(self, text: str, *, replica: int = 0) -> int:
        """Send one more turn with the history, and return the number of the expert's calls for it."""
        self._messages.append({"role": "user", "content": text})
        calls = await self._deployment.send(self._messages, replica=replica)
        self._messages.append({"role": "assistant", "content": ANSWER})
        return calls


def name_turns(turns: Turns) -> list[str]:
    """Return a text of its own for each turn."""
    return [f"turn {number} of {of}" for number, of in zip(turns.place, turns.conversation, strict=True)]


async def serve(
    deployment: Deployment, texts: Sequence[str], conversation: Ints, order: Iterable[int], replica: Ints | None = None
) -> Ints:
    """Send turns, one request each, and return the number of the expert's calls for each.

    Args:
        deployment: Answers them.
        texts: The text of each turn.
        conversation: Number of each turn's conversation.
        order: The order in which they are sent.
        replica: Number of the replica that the balancer chooses for each; None: the first.
    """
    clients: dict[int, Client] = {}
    calls = np.zeros(len(texts), dtype=np.int64)
    for turn in order:
        client = clients.setdefault(int(conversation[turn]), Client(deployment))
        calls[turn] = await client.say(texts[turn], replica=0 if replica is None else int(replica[turn]))
    return calls


def by_text(texts: Sequence[str], d: Floats) -> dict[str, float]:
    """Return the delegation value of each text."""
    return dict(zip(texts, d.tolist(), strict=True))
