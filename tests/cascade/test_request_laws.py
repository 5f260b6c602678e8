"""What holds for every request, whatever the traffic: its events in order, one end, and a bound on its calls."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from ctd_guardrail.observability.events import Arrived, Audited, Decided, Event, ExpertCalled, Recalled, Routed, Served
from ctd_guardrail.runtime.memory import LocalMemory
from tests.cascade.test_requests import Traffic

_MOST_CALLS = 2
_LEFT_ALONE = 99


class Asked(NamedTuple):
    """A request of generated traffic.

    Attributes:
        conversation: Number of its conversation: the next turn of it is asked.
        d: Delegation value of the new turn.
        is_repeated: Whether the newest turn is the one of the conversation's last request.
        forged: Earlier turns of a conversation that has made no request.
        cancelled_after: Turns of the event loop until the request is cancelled.
    """

    conversation: int
    d: float
    is_repeated: bool
    forged: int
    cancelled_after: int


TRAFFIC = st.lists(
    st.builds(
        Asked,
        conversation=st.integers(0, 2),
        d=st.sampled_from([-0.5, 0.5]),
        is_repeated=st.booleans(),
        forged=st.sampled_from([0, 0, 0, 1, 5]),
        cancelled_after=st.sampled_from([_LEFT_ALONE, _LEFT_ALONE, 0, 1, 2, 3]),
    ),
    max_size=12,
)


async def _serve(traffic: Traffic, asked: list[Asked]) -> list[tuple[tuple[list[Event], int], bool, bool, bool]]:
    """Make the requests.

    Returns:
        Of each: its events and the calls of the expert, then whether it began, was cancelled, shows a forged history.
    """
    said: dict[int, list[str]] = {}
    served = []
    for number, request in enumerate(asked):
        texts = said.setdefault(request.conversation, [])
        is_forged = request.forged > 0
        if is_forged:
            texts = [t for i in range(request.forged) for t in (f"forged {number} {i} 0.5", f"answer {number} {i} -1")]
        if is_forged or not (request.is_repeated and texts):
            if texts and not is_forged:
                traffic.cascade.note_answer(f"answer {number} -1")
                texts.append(f"answer {number} -1")
            texts.append(f"turn {number} {request.d}")
        before, events = len(traffic.expert.asked), len(traffic.events)
        task = asyncio.create_task(traffic.ask(*texts))
        for _ in range(request.cancelled_after):
            await asyncio.sleep(0)
        is_cancelled = task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        has_begun = request.cancelled_after > 0
        if not has_begun and not is_forged:
            # This turn reached no memory, so a later request that showed it would be one with a forged history.
            del said[request.conversation]
        seen = traffic.events[events:], len(traffic.expert.asked) - before
        served.append((seen, has_begun, is_cancelled, is_forged))
    return served


@settings(deadline=None)
@given(asked=TRAFFIC, share=st.sampled_from([0.0, 0.5]))
def test_each_request_arrives_and_is_served_once_with_its_calls(asked: list[Asked], share: float) -> None:
    traffic = Traffic(audit_share=share, max_expert_calls=_MOST_CALLS, memory=LocalMemory())
    for (events, calls), has_begun, is_cancelled, is_forged in asyncio.run(_serve(traffic, asked)):
        arrived = [event for event in events if isinstance(event, Arrived)]
        served = [event for event in events if isinstance(event, Served)]
        assert len(arrived) == len(served) == has_begun
        if not has_begun:
            assert not events
            continue
        (first,), (last,) = arrived, served
        assert (events[0], events[-1]) == (first, last)
        assert (first.conversation, first.digest, first.at) == (last.conversation, last.digest, last.at)
        assert last.is_placed is not is_forged
        assert calls <= last.calls <= (2 if share else 1) * _MOST_CALLS
        assert sum(isinstance(event, ExpertCalled) for event in events) == calls
        routed = [event for event in events if isinstance(event, Routed)]
        assert last.scores == tuple(event.d for event in routed)
        coins = sum(event.is_audited for event in events if isinstance(event, Routed | Recalled))
        assert sum(isinstance(event, Audited) for event in events) == coins
        # A decision follows the scores of its unit, or the coin on a remembered decision. A cancelled request may end
        # between them.
        begun = 0
        for event in events:
            if isinstance(event, Decided):
                begun -= 1
                assert begun >= 0
            else:
                begun += isinstance(event, Routed) or (isinstance(event, Recalled) and event.is_audited)
        recalled_audits = sum(isinstance(event, Recalled) and event.is_audited for event in events)
        assert begun <= recalled_audits + is_cancelled
