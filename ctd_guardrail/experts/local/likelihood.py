"""P(unsafe) from the likelihoods of two answers of a causal language model.

This is the expert of arXiv 2604.14251, section 4. Both completions are teacher-forced behind the prompt. Their
log-likelihoods are summed from the first token in which they differ. A two-way softmax turns the sums into a
probability.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import torch

from ctd_guardrail.activations.tokens import Ids
from ctd_guardrail.config.experts import Completions, LocalExpertConfig
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.experts.local.model import LocalModel, padded_batches
from ctd_guardrail.experts.local.windows import check_length, overlapping
from ctd_guardrail.experts.prompt import (
    DEFAULT_INSTRUCTION,
    JudgePrompt,
    RenderedPrompt,
    fingerprint,
    one_word_question,
)
from ctd_guardrail.text.conversation import Conversation

__all__ = ["Answer", "LikelihoodReader"]

_YES_OR_NO: Final = Completions(unsafe="Yes", safe="No")
# Stand-ins for the number in the marker lines and for the conversation while the chat template is rendered.
_NONCE: Final = "0123456789abcdef" * 2
_BODY: Final = "3f7a90c1d2e4b586" * 2
# Some chat templates print the current date. Scores must not change with the calendar.
_TEMPLATE_DATE: Final = dt.datetime(2024, 7, 26, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt with one of the two completions behind it.

    Attributes:
        ids: Token ids of all of it.
        start: Index of the first token whose likelihood counts.
    """

    ids: Ids
    start: int


class LikelihoodReader:
    """Reads a conversation inside the judge's prompt and compares the two answers.

    Users' text is encoded separately from the template, so a chat token in it is only text. The number in the marker
    lines is a hash of the conversation. No text can contain its own hash, and the same conversation always gets the
    same score.

    Args:
        local: A loaded causal language model.
        config: Completions and instruction.

    Raises:
        ConfigError: One completion begins with the other, the chat template cannot hold the prompt, or a setting for
            classifiers is given.
    """

    def __init__(self, local: LocalModel, config: LocalExpertConfig) -> None:
        if config.unsafe_label is not None:
            raise ConfigError(
                f"expert {config.model!r} is a causal language model, and unsafe_label is for classifiers",
                key="expert.unsafe_label",
                hint="Remove it; completions names the two answers",
            )
        self._local = local
        self._completions = config.completions or _YES_OR_NO
        question = one_word_question(self._completions.unsafe, self._completions.safe)
        self._prompt = JudgePrompt(question, config.instruction or DEFAULT_INSTRUCTION)
        self._before, self._after = self._frame()
        # A template writes its own first token.
        self._prefix = () if local.tokenizer.chat_template else local.encoder.special_tokens()[0]
        unsafe, safe = self._tails(_NONCE)
        if _first_difference(unsafe, safe) == min(len(unsafe), len(safe)):
            raise ConfigError(
                "one completion begins with the other",
                key="expert.completions",
                hint="Choose two answers that differ, such as Yes and No",
            )
        self.read(Conversation(()))

    @property
    def identity(self) -> str:
        """What the scores depend on beside model and tokenizer."""
        frame = (self._before, self._after, self._completions.unsafe, self._completions.safe)
        return fingerprint(*frame, str(self._local.window))

    def read(self, conversation: Conversation) -> list[tuple[Answer, Answer]]:
        """Return the unsafe and the safe answer to each window of a conversation. Thread-safe.

        Raises:
            OverlongError: It has more tokens than allowed.
        """
        nonce = conversation.digest()[:32]
        body = self._prompt.render(conversation, nonce=nonce).body
        check_length(len(body), characters=True)
        ids = self._local.encoder.text(body)
        check_length(len(ids))
        head = (*self._prefix, *self._local.encoder.markup(self._before.replace(_NONCE, nonce)))
        tails = self._tails(nonce)
        shared = _first_difference(*tails)
        capacity = self._local.window - len(head) - max(map(len, tails))
        windows = []
        for piece in overlapping(ids, capacity):
            start = len(head) + len(piece) + shared
            unsafe, safe = (Answer((*head, *piece, *tail), start) for tail in tails)
            windows.append((unsafe, safe))
        return windows

    def cost(self, window: tuple[Answer, Answer]) -> int:
        """Return the tokens that a window costs."""
        return sum(len(row) for row in {answer.ids[:-1] for answer in window})

    def score(self, windows: Sequence[tuple[Answer, Answer]]) -> list[float]:
        """Return P(unsafe) for each window. Runs on the device thread."""
        likelihoods = self._log_likelihoods([answer for window in windows for answer in window])
        return [_two_way_softmax(likelihoods[unsafe], likelihoods[safe]) for unsafe, safe in windows]

    @torch.inference_mode()
    def _log_likelihoods(self, answers: Sequence[Answer]) -> dict[Answer, float]:
        """Return sum over t >= start of log P(token t | tokens before t)."""
        model: Any = self._local.model
        # The last token is predicted, never read: two answers of one token to one prompt share their forward pass.
        sharing: dict[Ids, list[Answer]] = defaultdict(list)
        for answer in dict.fromkeys(answers):
            sharing[answer.ids[:-1]].append(answer)
        rows = list(sharing)
        likelihoods: dict[Answer, float] = {}
        # The padding does not matter: a causal model never reads the tokens behind.
        for group, batch in padded_batches(rows, pad_id=0, device=model.device):
            members = [(row, answer) for row, i in enumerate(group) for answer in sharing[rows[i]]]
            kept = sorted({t - 1 for _, answer in members for t in range(answer.start, len(answer.ids))})
            column = {position: k for k, position in enumerate(kept)}
            logits = model(
                **batch, use_cache=False, logits_to_keep=torch.tensor(kept, device=model.device)
            ).logits.float()  # [rows, kept positions, vocabulary]
            totals = logits.logsumexp(-1)
            for row, answer in members:
                columns = [column[t - 1] for t in range(answer.start, len(answer.ids))]
                targets = list(answer.ids[answer.start :])
                log_p = logits[row, columns, targets] - totals[row, columns]
                likelihoods[answer] = float(log_p.sum())
        return likelihoods

    def _tails(self, nonce: str) -> tuple[Ids, Ids]:
        after = self._after.replace(_NONCE, nonce)
        encode = self._local.encoder.markup
        return encode(after + self._completions.unsafe), encode(after + self._completions.safe)

    def _frame(self) -> tuple[str, str]:
        """Return the text before and behind the conversation."""
        tokenizer: Any = self._local.tokenizer
        prompt = replace(self._prompt.render(Conversation(()), nonce=_NONCE), body=_BODY)
        (folded,) = prompt.messages(fold=True)
        if not tokenizer.chat_template:
            text = f"{folded['content']}\n\nAnswer: "
        else:
            text = _first_that_holds(prompt, tokenizer)
        before, _, after = text.partition(_BODY)
        return before, after


def _first_that_holds(prompt: RenderedPrompt, tokenizer: Any) -> str:
    """Return the prompt in the model's chat template, with a system message or, where that is lost, without one."""
    problem = "does not keep the judge's prompt as it is"
    cause: Exception | None = None
    for fold in (False, True):
        try:
            text = _chat(tokenizer, prompt.messages(fold=fold))
        except Exception as error:  # noqa: BLE001  # a template may raise anything; several refuse system messages
            problem, cause = f"refuses the judge's prompt ({type(error).__name__})", error
            continue
        # Some templates drop system messages silently: the prompt would lack the instruction.
        pieces = (prompt.system, prompt.head + _BODY + prompt.tail)
        if text.count(_BODY) == 1 and all(piece.strip() in text for piece in pieces):
            return text
        problem, cause = "does not keep the judge's prompt as it is", None
    raise ConfigError(
        f"the chat template of the expert {problem}",
        key="expert.model",
        hint="Use a model whose chat template prints the user message as it is",
    ) from cause


def _chat(tokenizer: Any, messages: Sequence[dict[str, str]]) -> str:
    rendered = tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=True,
        # Models that reason first must answer at once.
        enable_thinking=False,
        date_string=_TEMPLATE_DATE.strftime("%d %b %Y"),
        strftime_now=_TEMPLATE_DATE.strftime,
    )
    return cast("str", rendered)


def _first_difference(one: Ids, other: Ids) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _two_way_softmax(unsafe: float, safe: float) -> float:
    # exp of the smaller exponent only: it cannot overflow.
    gap = math.exp(-abs(unsafe - safe))
    return 1 / (1 + gap) if unsafe >= safe else gap / (1 + gap)
