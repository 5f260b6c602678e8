"""From a request to its units: what is judged, in which order, and what earlier requests have decided about it.

The guard gives a verdict on all text of others that the call of the main LLM will carry:

- texts beside the conversation, each as a unit of its own, before everything else;
- every turn of the user, with the context that the policy was calibrated with;
- the assistant's messages that no unit shows, each as a unit of its own: a client may have written them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from ctd_guardrail.cascade.settings import CascadeSettings
from ctd_guardrail.decision import Decision, Mode, OnHistory, RefusedTurns, Timings, Verdict
from ctd_guardrail.errors import InputError, NonTextError, OverlongError
from ctd_guardrail.observability.events import Emit, Origin, Recalled
from ctd_guardrail.runtime.memory import Memory
from ctd_guardrail.text.conversation import Context, Conversation, History, Message, Turn
from ctd_guardrail.text.message_text import size_of
from ctd_guardrail.text.refusals import Receipts, Refusals

__all__ = ["Dialogue", "Judge", "Unit", "note_answer"]

# Above this many characters, reading an answer takes too long for an event loop.
_LONGEST_NOTED: Final = 16_384


class Unit(NamedTuple):
    """What is judged at once.

    Attributes:
        conversation: The text.
        digest: Its digest.
        obstacle: Why the base model cannot read it, if that is known before it tries; None elsewhere.
        is_turn: Whether it is a turn of the user, of which calibration has seen the like.
    """

    conversation: Conversation
    digest: str
    obstacle: InputError | None = None
    is_turn: bool = True


class Judge(NamedTuple):
    """Decides about the units of one request.

    Attributes:
        decide: Decides about a unit.
        draw_audit: Throws the coin of the audits for a turn that is recalled. A coin for each request: with one for
            each text, a repeated attack would be audited always or never.
        audit: Audits a remembered decision. Returns the decision that stands.
    """

    decide: Callable[[Unit], Awaitable[Decision]]
    draw_audit: Callable[[], bool]
    audit: Callable[[Unit, Decision], Awaitable[Decision]]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Judges the parts of a request.

    Attributes:
        settings: The settings of the cascade.
        refusals: The answers by which the app refuses.
        judgement_key: Hash of everything that judgements depend on beside the unit; None: nothing is remembered.
        receipts: Signs refusals; None: only a remembered decision proves one.
        memory: Remembers decisions, and the answers of the main LLM.
    """

    settings: CascadeSettings
    refusals: Refusals
    judgement_key: str | None
    receipts: Receipts | None
    memory: Memory

    def without_memory(self) -> Dialogue:
        """Return a dialogue that neither remembers nor recalls a decision."""
        return replace(self, judgement_key=None, receipts=None)

    async def judge(
        self,
        conversation: Conversation,
        asides: tuple[Conversation, ...],
        judge: Judge,
        *,
        mode: Mode,
        emit: Emit,
        origin: Origin,
        characters: int,
    ) -> Decision | None:
        """Judge the new parts, up to the first that stops the request.

        Args:
            conversation: The conversation.
            asides: Texts outside the dialogue, each a conversation of one user turn.
            judge: Decides about a unit.
            mode: Whether this request's verdict counts: in shadow mode the user is refused nothing.
            emit: Reports the turns that were judged before.
            origin: The kind of request.
            characters: Characters that the units of this request may have together.

        Returns:
            The decision about the first part that stops the request. Without one, the decision about the last judged
            turn, else about the last aside. None if there was nothing to judge. Its times are those of all units of
            this request.
        """
        walk = _Walk(self, judge, mode=mode, emit=emit, origin=origin, characters=characters)
        stop = last = await walk.asides(asides)
        if stop is None or stop.verdict is Verdict.ALLOW:
            last = await walk.turns(conversation) or last
        if last is None or last.timings is walk.timings:
            return last
        return replace(last, timings=walk.timings or Timings())


def note_answer(answer: str | Mapping[str, Any], memory: Memory) -> None:
    """Remember an answer of the main LLM, so that it is not judged when a client sends it back as history.

    Only its hash is kept. An answer of more than 16,384 characters is not remembered.

    Args:
        answer: Its text, or the whole message if it has tool calls.
        memory: Remembers it.

    Raises:
        InputError: The message holds content that is not text.
    """
    message = {"content": answer} if isinstance(answer, str) else answer
    if size_of(message) <= _LONGEST_NOTED:
        for each in Conversation.from_messages([{**message, "role": "assistant"}]).messages:
            memory.note_answer(_said(each))


def _said(message: Message) -> str:
    # Apps strip and wrap what they keep.
    return Conversation((Message("assistant", " ".join(message.content.split())),)).digest()


class _Walk:
    """The parts of one request, judged one after another."""

    def __init__(
        self, dialogue: Dialogue, judge: Judge, *, mode: Mode, emit: Emit, origin: Origin, characters: int
    ) -> None:
        self.timings: Timings | None = None
        self._dialogue = dialogue
        self._judge = judge
        self._mode = mode
        self._emit = emit
        self._origin = origin
        self._characters = characters
        self._passed: set[str] = set()

    async def asides(self, asides: tuple[Conversation, ...]) -> Decision | None:
        decision: Decision | None = None
        for aside in asides:
            if not aside.is_blank:
                decision = await self._judge_apart(aside.messages[0]) or decision
                if decision is not None and decision.verdict is Verdict.BLOCK:
                    break
        return decision

    async def turns(self, conversation: Conversation) -> Decision | None:
        dialogue = self._dialogue
        history = History(dialogue.settings.context)
        decision: Decision | None = None
        refused: Decision | None = None  # settled, and no turn of the user follows
        unshown: list[Message] = []
        turns = self._ended(conversation.turns())
        await self._prefetch(turns[:-1])
        for turn in turns:
            if not turn.is_blank:
                digest = history.digest(turn)
                decision, was_refused = await self._judge_turn(turn, digest, history, is_newest=turn is turns[-1])
                if decision.verdict is Verdict.BLOCK:
                    decision = self._with_receipt(turn, digest, decision)
                    if not self._is_settled(turn, digest, decision, was_refused=was_refused):
                        return decision
                    refused, decision = decision, None  # it is no decision about the turns after it
                    continue
                unshown.clear()
                if turn.asks:
                    refused = None
            history.add(turn)
            answers = turn.answer
            if dialogue.settings.context is Context.CONVERSATION:
                # A later unit shows them, except the marks that replace content other than text.
                unshown += [answer for answer in answers if answer.is_text]
                answers = tuple(answer for answer in answers if not answer.is_text)
            stop = await self._judge_answers(answers)
            if stop is not None:
                return stop
        # The call of the main LLM would answer a refused turn itself.
        return await self._judge_answers(unshown) or refused or decision

    def _ended(self, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        """Return the turns, the last one without the refusals behind it: with them it would be another unit."""
        if all(message.role == "user" for message in turns[-1].question):
            return turns
        last = turns[-1].ended()
        return (*turns[:-1], last) if self._dialogue.refusals.answer(last) else turns

    async def _judge_turn(self, turn: Turn, digest: str, history: History, *, is_newest: bool) -> tuple[Decision, bool]:
        """Return the decision about a turn, and whether an earlier request was refused for it."""
        key = _key(digest, is_text=turn.is_text)
        known = await self._recall(key)
        if known is None:
            return await self._judge_now(history.unit(turn), digest, is_text=turn.is_text, is_turn=True), False
        was_refused = _is_refusal(known)
        is_audited = is_newest and self._judge.draw_audit()
        self._emit(Recalled(self._origin, is_newest, is_audited))
        if is_audited:
            known = await self._audit(Unit(history.unit(turn), digest), known)
        if known.mode is not self._mode is Mode.ENFORCE:
            # From now on the user has seen the refusal.
            await self._remember(key, replace(known, mode=self._mode))
        return known, was_refused

    async def _audit(self, unit: Unit, known: Decision) -> Decision:
        """Audit a remembered decision, and remember what the expert has changed."""
        decision = await self._judge.audit(unit, known)
        if decision is not known:
            self._count_time(decision)
            # A refusal that the user has seen stays one, also if this request is in shadow mode.
            mode = Mode.ENFORCE if _is_refusal(known) else decision.mode
            await self._remember(unit.digest, replace(decision, mode=mode))
        return decision

    async def _judge_answers(self, answers: Sequence[Message]) -> Decision | None:
        """Judge answers that a client may have written, each by itself. Return the decision that stops the request."""
        for answer in filter(self._needs_verdict, answers):
            decision = await self._judge_apart(answer)
            if decision is not None and decision.verdict is Verdict.BLOCK:
                return decision
        return None

    async def _judge_apart(self, message: Message) -> Decision | None:
        """Judge a text as one turn of a user. Return None if this request has done so, or the main LLM gave it."""
        unit = Conversation((replace(message, role="user"),))
        digest = unit.digest()
        key = _key(digest, is_text=message.is_text)
        if key in self._passed:
            return None
        decision = await self._recall(key)
        if decision is None and message.role == "assistant" and await self._was_said(message):
            return None
        if decision is None:
            decision = await self._judge_now(unit, digest, is_text=message.is_text, is_turn=False)
        else:
            self._emit(Recalled(self._origin))
        self._passed.add(key)
        return decision

    async def _judge_now(self, unit: Conversation, digest: str, *, is_text: bool, is_turn: bool) -> Decision:
        self._characters -= unit.length
        obstacle = _obstacle(self._characters, is_text=is_text)
        decision = await self._judge.decide(Unit(unit, digest, obstacle, is_turn))
        self._count_time(decision)
        await self._remember(_key(digest, is_text=is_text), decision)
        return decision

    def _count_time(self, decision: Decision) -> None:
        self.timings = decision.timings if self.timings is None else self.timings.plus(decision.timings)

    async def _remember(self, digest: str, decision: Decision) -> None:
        if self._dialogue.judgement_key is not None:
            await self._dialogue.memory.remember(self._dialogue.judgement_key, digest, decision)

    async def _prefetch(self, turns: Sequence[Turn]) -> None:
        """Prepare to recall turns. Where one of them was refused, the digests of later ones are others."""

        def digests() -> Iterator[str]:
            history = History(self._dialogue.settings.context)
            for turn in turns:
                if not turn.is_blank:
                    yield _key(history.digest(turn), is_text=turn.is_text)
                history.add(turn)

        if len(turns) > 1 and self._dialogue.judgement_key is not None:
            await self._dialogue.memory.prefetch(self._dialogue.judgement_key, digests)

    async def _recall(self, digest: str) -> Decision | None:
        dialogue = self._dialogue
        if dialogue.judgement_key is None:
            return None
        return await dialogue.memory.recall(dialogue.judgement_key, digest)

    def _needs_verdict(self, message: Message) -> bool:
        """Return whether a client may have written an assistant's message."""
        if self._dialogue.settings.history is OnHistory.TRUST or not message.content.strip():
            return False
        if not message.is_text:
            return True
        answers = self._dialogue.memory.answers
        was_said = len(answers) > 0 and _said(message) in answers
        return not (was_said or self._dialogue.refusals.has_words_of(message))

    async def _was_said(self, message: Message) -> bool:
        """Return whether the main LLM gave an answer, at any replica. Asked last, since it may take a round trip."""
        return message.is_text and await self._dialogue.memory.knows_answer(_said(message))

    def _with_receipt(self, turn: Turn, digest: str, decision: Decision) -> Decision:
        receipts = self._dialogue.receipts
        is_refused = self._mode is Mode.ENFORCE and not decision.reason.is_failure
        if receipts is None or not turn.is_text or not is_refused:
            return decision
        return replace(decision, receipt=receipts.sign(digest))

    def _is_settled(self, turn: Turn, digest: str, decision: Decision, *, was_refused: bool) -> bool:
        """Return whether this guard refused the turn in an earlier request, and a refusal answers it.

        A turn that could not be read was not judged, and no answer settles it.
        """
        dialogue = self._dialogue
        if dialogue.settings.refused_turns is RefusedTurns.STRICT or decision.reason.is_failure or not turn.is_text:
            return False
        if not dialogue.refusals.answer(turn):
            return False
        return was_refused or (dialogue.receipts is not None and dialogue.receipts.prove(turn, digest))


def _key(digest: str, *, is_text: bool) -> str:
    """Return the key under which a unit is remembered.

    The expert sees a note in the place of content other than text, and nothing of the content. So its answer depends on
    the text and the note. A note that a user has typed is another unit: the probes read it.
    """
    return digest if is_text else f"{digest}:nontext"


def _is_refusal(known: Decision) -> bool:
    """Return whether the user has seen a refusal for a remembered decision."""
    return known.verdict is Verdict.BLOCK and known.mode is Mode.ENFORCE


def _obstacle(characters: int, *, is_text: bool) -> InputError | None:
    """Return why the base model cannot read a unit, if that is known before it tries."""
    if not is_text:
        return NonTextError("a message holds content that is not text")
    if characters < 0:
        return OverlongError("the request holds too much text that was not judged before")
    return None
