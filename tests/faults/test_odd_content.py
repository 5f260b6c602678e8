"""Whatever a message holds, the guard answers with a verdict, and lets nothing escape."""

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ctd_guardrail.decision import Decision, OnUnreadable, Reason, Route, Verdict
from tests.support.word_guard import word_guard


class Angry(Mapping[str, Any]):
    """A mapping that does not let itself be read."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError(key)

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError

    def __len__(self) -> int:
        return 1


def oddity(rng: random.Random, depth: int = 0) -> Any:
    """Return something that a message may hold and should not."""
    nested = depth < 3
    return rng.choice(
        (
            lambda: None,
            lambda: "",
            lambda: "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(40))),
            lambda: rng.choice(
                ("hello", "a harmful wish", "doubtful", "\ud800", "\udfff\ud800", "\x00", "\u202e", " ")
            ),
            lambda: rng.randbytes(rng.randrange(20)),
            lambda: rng.choice((0, -1, 1 << 70, float("nan"), True, 3j, object(), Ellipsis, b"", bytearray(3))),
            lambda: [oddity(rng, depth + 1) for _ in range(rng.randrange(4))] if nested else [],
            lambda: (
                {"type": rng.choice(("text", "image_url", None, 7)), "text": oddity(rng, depth + 1)} if nested else {}
            ),
            lambda: {"type": "text", "text": "hello"},
            Angry,
            lambda: iter(("a", "b")),
            lambda: "a" * rng.randrange(20_000),
        )
    )()


def message(rng: random.Random) -> Any:
    if rng.random() < 0.1:
        return oddity(rng)
    role = rng.choice(("user", "assistant", "tool", "system", "User", "", None, 7, ["user"], "context"))
    odd: dict[Any, Any] = {"role": "user" if rng.random() < 0.6 else role, "content": oddity(rng)}
    if rng.random() < 0.1:
        del odd[rng.choice(("role", "content"))]
    return odd


async def test_no_message_gets_past_the_guard_without_a_verdict(
    trials: Callable[..., int], record: Callable[..., None]
) -> None:
    rng = random.Random(0)
    guards = [word_guard(unreadable=policy) for policy in OnUnreadable]
    held = 0
    total = trials(full=10_000, reduced=1_500)
    for i in range(total):
        messages: Any = [message(rng) for _ in range(rng.randrange(1, 4))] if rng.random() < 0.95 else oddity(rng)
        decision = await guards[i % len(guards)].check(messages)
        assert isinstance(decision, Decision)
        assert decision.verdict in set(Verdict)
        assert decision.route in set(Route)
        assert decision.reason in set(Reason)
        held += 1
    record("odd_content", held, total)
