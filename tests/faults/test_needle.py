"""No token of a conversation goes unscored: harm behind any length, at any place, at any window's edge is read."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ctd_guardrail.decision import OnFailure, OnUnreadable, Reason, Verdict
from ctd_guardrail.errors import OverlongError
from ctd_guardrail.text.conversation import Conversation
from tests.support.cascades import make_cascade
from tests.support.word_guard import WordJudge

MOST_TOKENS = 1 << 17
# Each of them is a token, and none joins its neighbours.
SIGNS = "!?;:,%&"
NEEDLE = "#@"


@pytest.fixture(scope="module")
def engine(tiny_bert: Path) -> Iterator[Any]:
    """A model that reads one character a token, in windows of 128."""
    from ctd_guardrail.activations.base_model import BatchedBaseModel  # noqa: PLC0415  # torch
    from ctd_guardrail.activations.huggingface import HuggingFaceSource  # noqa: PLC0415
    from ctd_guardrail.activations.spec import ActivationSpec  # noqa: PLC0415

    spec = ActivationSpec(model=str(tiny_bert), layers=(1,), site="residual", max_tokens=MOST_TOKENS)
    engine = BatchedBaseModel(HuggingFaceSource(spec, device="cpu"), max_batch_tokens=1 << 14)
    yield engine
    engine.close()


def sources(tiny_bert: Path, tiny_llama: Path, max_tokens: int) -> list[tuple[Any, int, int]]:
    """Return tokenisers with the special tokens around each window, and around a conversation."""
    from transformers import AutoTokenizer  # noqa: PLC0415  # torch

    from ctd_guardrail.activations.tokens import ConversationTokenizer  # noqa: PLC0415

    bert, llama = (AutoTokenizer.from_pretrained(path) for path in (tiny_bert, tiny_llama))
    # [CLS] ... [SEP]; and <s> before each window, "<|user|>" and </s> around the text of the conversation.
    return [
        (ConversationTokenizer(bert, window=128, max_tokens=max_tokens), 2, 0),
        (ConversationTokenizer(llama, window=256, max_tokens=max_tokens), 1, 9),
    ]


def test_tokens_scored_are_tokens_received_or_the_conversation_is_refused(
    tiny_bert: Path, tiny_llama: Path, trials: Callable[..., int], record: Callable[..., None]
) -> None:
    rng = random.Random(0)
    most = 2000
    tokenizers = sources(tiny_bert, tiny_llama, most)
    held = refused = 0
    total = trials(full=10_000, reduced=400)
    for i in range(total):
        tokenize, around_window, around_text = tokenizers[i % 2]
        # Half of them around the edges of windows and of the limit.
        edges = (126, 127, 128, 247, 255, 256, 510, most - 11, most - 10, most, most + 1)
        length = rng.choice(edges) if rng.random() < 0.5 else rng.randrange(1, most + 200)
        text = "".join(rng.choices(SIGNS, k=length))
        try:
            windows = tokenize(Conversation.from_text(text))
        except OverlongError:
            # The template's own first token counts among a conversation's.
            refused += 1
            held += length + around_text + (1 if around_text else 0) > most
            continue
        scored = sum(len(window) - around_window for window in windows)
        held += scored == length + around_text <= most
    assert 0 < refused < total
    record("needle", held, total)


def moved(engine: Any, length: int, place: int) -> tuple[list[int], int, int]:
    """Return the windows whose scores the needle moves, and those that hold its first and last token."""
    from ctd_guardrail.probes.ragged import segment_mean  # noqa: PLC0415  # torch

    hay = SIGNS[0] * length
    haystack = hay[:place] + NEEDLE + hay[place + len(NEEDLE) :]
    without, with_needle = engine.run_many([Conversation.from_text(text) for text in (hay, haystack)], segment_mean)
    assert len(with_needle) == -(-length // 126)
    changed = [i for i in range(len(without)) if abs(without[i] - with_needle[i]).max() > 1e-4]
    return changed, place // 126, (place + len(NEEDLE) - 1) // 126


def test_a_needle_moves_the_score_of_the_window_that_holds_it(
    engine: Any, trials: Callable[..., int], record: Callable[..., None]
) -> None:
    lengths = [1 << power for power in range(10, 10 + trials(full=8, reduced=2))]
    places = [
        (length, round(share * (length - len(NEEDLE)))) for length in lengths for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    # A window holds 126 characters: the needle ends before an edge, lies across it, and begins behind it.
    places += [(1024, 126 * window + shift) for window in (1, 4) for shift in (-2, -1, 0, 1)]
    held = 0
    for length, place in places:
        changed, first, last = moved(engine, length, place)
        held += changed == sorted({first, last})
    record("needle_place", held, len(places), figure=f"up to {max(lengths) >> 10}k tokens")


@pytest.mark.parametrize("policy", OnUnreadable)
async def test_beyond_the_limit_the_stated_policy_holds(engine: Any, policy: OnUnreadable) -> None:
    judge = WordJudge()
    guard = make_cascade(
        scorer=engine,
        expert=judge,
        on_failure=OnFailure.ALLOW,
        on_overlong=policy,
    )
    decision = await guard.check([{"role": "user", "content": "ab " * (MOST_TOKENS // 2) + "harmful"}])
    if policy is OnUnreadable.EXPERT:
        assert (decision.verdict, decision.reason, len(judge.seen)) == (Verdict.BLOCK, Reason.EXPERT_UNSAFE, 1)
    else:
        assert (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.OVERLONG)
