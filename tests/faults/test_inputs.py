"""Whatever a request holds: one of two verdicts, and no earlier turn is forgotten."""

import random
from collections.abc import Callable
from typing import Any

from faulty.guards import delegating

from ctd_guardrail.conversation import Conversation
from ctd_guardrail.decision import Decision, UnreadablePolicy, Verdict
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.refusals import Refusals

REFUSAL = "I'm sorry, I can't respond to that."
ROLES: tuple[Any, ...] = ("user", "user", "user", "assistant", "system", "tool", "developer", "", None, 7, "context")
TEXTS = (
    "", " ", "plain", "odd", "harmful", "\x00", "\ud800", "a\udfff", "\u202e\u200b", "\U000e0041", "\ufeff",
    "e\u0301" * 50, "x" * 20_000, "{{ user }}", "%s %(x)s {0}", "<|im_start|>system", "\r\n\r\n", "\u2028",
    "\u0130", "-1e999",
)  # fmt: skip


class Judge:
    identity = "judge"

    async def score(self, conversation: Conversation) -> ExpertScore:
        return ExpertScore(0.9 if "harmful" in conversation.plain_text() else 0.1)

    async def aclose(self) -> None:
        return None


ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**400, b"bytes", b"\xff\xfe", (), ("a", 1), object(), set(),
    frozenset({1}), range(3), len,
)  # fmt: skip


def content(rng: random.Random, depth: int = 0) -> Any:
    """Return the content of a message: mostly text, sometimes parts, sometimes what no client should send."""
    kind = rng.choices(("text", "odd", "part", "media", "parts", "mapping"), (4, 4, 1, 1, 3 * (depth < 3), depth < 3))[
        0
    ]
    makers: dict[str, Callable[[], Any]] = {
        "text": lambda: rng.choice(TEXTS),
        "odd": lambda: rng.choice(ODD),
        "part": lambda: {"type": "text", "text": rng.choice((*TEXTS, None, 3, b""))},
        "media": lambda: {
            "type": rng.choice(("image_url", "input_audio", "file", None, 3)),
            "image_url": {"url": "data:"},
        },
        "parts": lambda: [content(rng, depth + 1) for _ in range(rng.randrange(4))],
        "mapping": lambda: {rng.choice(("type", "text", "x", 3, None)): content(rng, depth + 1)},
    }
    return makers[kind]()


def messages(rng: random.Random) -> Any:
    kind = rng.randrange(12)
    if kind == 0:
        return rng.choice((None, 42, "text", b"bytes", {}, {"role": "user"}, object(), [None], [[]], [[{}]]))
    found: list[Any] = [{"role": rng.choice(ROLES), "content": content(rng)} for _ in range(rng.randrange(5))]
    if kind == 1:
        found.append(content(rng))
    if kind == 2 and found:
        found[0].pop(rng.choice(("role", "content")))
    if kind == 3 and found:
        found[-1] |= {"name": content(rng), "tool_calls": content(rng), 5: None}
    return iter(found) if kind == 4 else tuple(found) if kind == 5 else found


async def test_odd_messages_raise_nothing_and_get_a_verdict(
    trials: Callable[..., int], record: Callable[..., None]
) -> None:
    rng = random.Random(0)
    guards = [delegating(Judge(), on_nontext=policy, on_overlong=UnreadablePolicy.BLOCK) for policy in UnreadablePolicy]
    total, held = trials(full=10_000, reduced=1000), 0
    verdicts = set()
    for i in range(total):
        decision = await guards[i % len(guards)].check(messages(rng))
        held += isinstance(decision, Decision) and decision.verdict in set(Verdict)
        verdicts.add((decision.verdict, decision.reason))
    assert len(verdicts) >= 6
    record("odd_messages", held, total)


def turns(shape: int, harmful: str) -> list[dict[str, Any]]:
    user, assistant, tool = ({"role": role, "content": ""} for role in ("user", "assistant", "tool"))
    first, last = user | {"content": harmful}, user | {"content": "a plain question"}
    between = [
        [],
        [assistant | {"content": "Sure."}],
        [assistant | {"content": "Well,"}, user | {"content": "plain talk"}, assistant | {"content": "indeed."}],
        [assistant | {"content": "Let me look."}, tool | {"content": "a plain result"}],
    ][shape]
    return [first, *between, last]


async def test_an_earlier_harmful_turn_stops_the_conversation(
    trials: Callable[..., int], record: Callable[..., None]
) -> None:
    each, held = trials(full=100, reduced=10), 0
    guard = delegating(Judge(), refusals=Refusals([REFUSAL]))
    for i in range(each):
        for shape in range(4):
            harmful = f"{'odd' if i % 2 else 'plain'} and harmful {i}"
            held += (await guard.check(turns(shape, harmful))).verdict is Verdict.BLOCK
    record("earlier_turn", held, 4 * each)


async def test_a_turn_that_was_refused_and_answered_so_stops_no_later_one(
    trials: Callable[..., int], record: Callable[..., None]
) -> None:
    total, held = trials(full=100, reduced=10), 0
    guard = delegating(Judge(), refusals=Refusals([REFUSAL]))
    for i in range(total):
        conversation = [
            {"role": "user", "content": f"{'odd' if i % 2 else 'plain'} and harmful {i}"},
            {"role": "assistant", "content": REFUSAL},
            {"role": "user", "content": "a plain question"},
        ]
        held += (await guard.check(conversation)).verdict is Verdict.ALLOW
    record("refused_turn", held, total)
