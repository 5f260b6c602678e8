"""A guard whose parts say what the test wants, and what they were shown."""

from __future__ import annotations

from typing import Any

import numpy as np

from ctd_guardrail.activations.scorer import Scored
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.decision import OnUnreadable
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.text.conversation import Context, Conversation
from tests.support.cascades import CountedCascade, make_cascade

__all__ = ["WordJudge", "WordReader", "word_guard"]

HARM, DOUBT = "harmful", "doubtful"


class WordReader:
    """Finds what holds the word `harmful` unsafe, and sends what holds the word `doubtful` to the expert."""

    spec = ActivationSpec(model="words", layers=(1,))

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def run(self, conversation: Conversation, head: Any) -> Scored:
        text = conversation.plain_text()
        self.seen.append(text)
        scores = np.array([[0.9 if HARM in text else 0.1, 0.5 if DOUBT in text else -0.5]])
        return Scored(scores, queue_ms=0.0, forward_ms=0.0)


class WordJudge:
    """Finds what holds the word `harmful` unsafe."""

    identity = "judge"

    def __init__(self) -> None:
        self.seen: list[Conversation] = []

    async def score(self, conversation: Conversation) -> ExpertScore:
        self.seen.append(conversation)
        return ExpertScore(0.9 if HARM in conversation.plain_text() else 0.1)

    async def aclose(self) -> None:
        return None


def word_guard(
    *,
    context: Context = Context.CONVERSATION,
    unreadable: OnUnreadable = OnUnreadable.BLOCK,
    judge: WordJudge | None = None,
    reader: WordReader | None = None,
    **settings: Any,
) -> CountedCascade:
    """Return a guard of these parts. One whose `judgement_key` has a name remembers what it judged."""
    return make_cascade(
        scorer=reader or WordReader(),
        expert=judge or WordJudge(),
        context=context,
        on_nontext=unreadable,
        on_overlong=unreadable,
        **settings,
    )
