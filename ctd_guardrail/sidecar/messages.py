"""What goes over the wire: bodies of requests and answers."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ctd_guardrail.decision import Decision, Mode, OnFailure, Reason, Route, Verdict

__all__ = [
    "BLOCK_LABEL",
    "FAILURE_LABEL",
    "ChatRequest",
    "CheckAnswer",
    "CheckRequest",
    "ContentDetection",
    "ContentsRequest",
    "Detection",
    "content_detections",
    "detections",
]

BLOCK_LABEL = "ctd_block"
"""Label of every block; the one that clients must act upon."""

FAILURE_LABEL = "ctd_failure"
"""Label of a second detection beside a block that the guard did not judge, but could not check."""

_HALF_PAIR: Final = re.compile("[\ud800-\udfff]")


class CheckRequest(BaseModel):
    """Body of ``POST /v1/check``: one conversation.

    Attributes:
        messages: Chat messages in the OpenAI form, oldest first, the input to screen last.
        text: One user turn, instead of ``messages``.
        overrides: Settings for this request alone; only those that ``allow_overrides`` names.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    text: str | None = None
    overrides: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> CheckRequest:
        if (self.messages is None) == (self.text is None):
            raise PydanticCustomError("conversation", "give either `messages` or `text`")
        return self

    def conversation(self) -> list[dict[str, Any]]:
        """Return the messages."""
        return [{"role": "user", "content": self.text}] if self.messages is None else self.messages


class CheckAnswer(BaseModel):
    """Answer of ``POST /v1/check``.

    Attributes:
        verdict: ``allow`` or ``block``: what the client has to do.
        mode: ``shadow`` where verdicts do not count, so that ``verdict`` is always ``allow``.
        shadow_verdict: In shadow mode, the verdict that would count.
        route: Whom the budget rule assigned the input to.
        reason: Why.
        failed: Whether the guard could not do its work, so that it did not judge the content.
        on_failure: The failure policy that decided; absent if none did.
        receipt: Proof of a refusal, to go back as ``metadata.ctd_receipt`` of the message that shows it to the user;
            absent without ``receipt_key_env``.
        request_id: The request's ``X-Request-Id``, or one that was made for it.
        latency_ms: Time that the guard took; where scores are shown. A turn that was judged before takes none, so it
            tells whether the same turn has been sent, by anyone.
        p: Safety probe, P(unsafe); where scores are shown.
        d: Delegation value; where scores are shown.
        p_expert: Expert, P(unsafe); where scores are shown and it was asked.
    """

    verdict: Verdict
    mode: Mode
    shadow_verdict: Verdict | None = None
    route: Route
    reason: Reason
    failed: bool
    on_failure: OnFailure | None = None
    receipt: str | None = None
    request_id: str
    latency_ms: float | None = None
    p: float | None = None
    d: float | None = None
    p_expert: float | None = None

    @classmethod
    def of(cls, decision: Decision, request_id: str, *, show_scores: bool) -> CheckAnswer:
        """Return the answer for a decision."""
        answer = cls(
            verdict=Verdict.BLOCK if decision.is_blocking else Verdict.ALLOW,
            mode=decision.mode,
            shadow_verdict=decision.verdict if decision.mode is Mode.SHADOW else None,
            route=decision.route,
            reason=decision.reason,
            failed=decision.reason.is_failure,
            on_failure=decision.on_failure,
            receipt=decision.receipt if decision.is_blocking else None,
            request_id=request_id,
        )
        if not show_scores:
            return answer
        shown = {"p": decision.p, "d": decision.d, "p_expert": decision.p_expert}
        return answer.model_copy(update={"latency_ms": round(decision.timings.total_ms, 3), **shown})


class _DetectorRequest(BaseModel):
    """What requests of the FMS detector API have in common.

    Attributes:
        detector_params: Accepted and not used: the policy has the thresholds.
    """

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    detector_params: dict[str, Any] | None = None


class ContentsRequest(_DetectorRequest):
    """Body of ``POST /api/v1/text/contents``.

    Attributes:
        contents: Texts; each is screened as a conversation of one user turn.
    """

    contents: Annotated[list[str], Field(min_length=1)]


class ChatRequest(_DetectorRequest):
    """Body of ``POST /api/v1/text/chat``.

    Attributes:
        messages: Chat messages in the OpenAI form, oldest first, the input to screen last.
        tools: Accepted and not used: definitions of tools are the app's own words.
    """

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    tools: list[Any] | None = None


class Detection(BaseModel):
    """One detection of the FMS detector API, about a conversation.

    Attributes:
        detection: The decision's reason.
        detection_type: ``ctd_block``, or ``ctd_failure``.
        score: 1: a verdict, not a probability, so that no threshold of a client undoes it.
        metadata: Route and reason.
    """

    detection: Reason
    detection_type: str
    score: float = 1.0
    metadata: dict[str, str]


class ContentDetection(Detection):
    """One detection of the FMS detector API, about a content.

    Attributes:
        start: First character of the content that it is about.
        end: The one after the last.
        text: What stands there: the whole content.
    """

    start: int
    end: int
    text: str


def detections(decision: Decision) -> list[Detection]:
    """Return the detections of a conversation; an allowed one has none.

    A block is always ``ctd_block``. If the guard could not check the input, ``ctd_failure`` is added and never
    replaces it. So a client that knows only one label still blocks.
    """
    if not decision.is_blocking:
        return []
    labels = [BLOCK_LABEL, *([FAILURE_LABEL] if decision.reason.is_failure else [])]
    metadata = {"route": decision.route.value, "reason": decision.reason.value}
    return [Detection(detection=decision.reason, detection_type=label, metadata=metadata) for label in labels]


def content_detections(decision: Decision, content: str) -> list[ContentDetection]:
    """Return the detections of a content."""
    # JSON parsers refuse half of a surrogate pair. What stands for it is one character long, as it is.
    text = _HALF_PAIR.sub("\ufffd", content)
    return [
        ContentDetection(start=0, end=len(content), text=text, **dict(detection)) for detection in detections(decision)
    ]
