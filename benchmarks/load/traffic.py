"""Requests to a guard over HTTP: by a fixed number of clients, or at the times of a Poisson process.

Clients that wait for an answer before the next request slow down with the server, so they never see the queue that
users would see. The open loop sends at times that were drawn beforehand, and measures latency from those times.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import numpy as np

__all__ = ["Answer", "Door", "Outcomes", "closed_loop", "open_loop", "text", "tickets"]

_TIMEOUT: Final = aiohttp.ClientTimeout(total=60)
_SUBJECTS: Final = ("invoice", "router", "garden", "visa", "compiler", "fever", "mortgage", "password", "parcel", "cat")
_VERBS: Final = ("cancel", "repair", "translate", "delete", "open", "sell", "debug", "bypass", "move", "paint")
_PLACES: Final = ("at home", "in Lisbon", "before Monday", "on the server", "without a key", "for my sister")


def tickets() -> Iterator[int]:
    """Yield different random numbers of seven digits. Every part of the sequence has the same distribution."""
    rng, seen = random.Random(0), set[int]()  # noqa: S311  # no secret
    while True:
        number = rng.randrange(1_000_000, 10_000_000)
        if number not in seen:
            seen.add(number)
            yield number


def text(number: int) -> str:
    """Return a message that contains this number. Different numbers give different messages."""
    rng = random.Random(number)  # noqa: S311  # no secret
    words = [rng.choice(kind) for kind in (_VERBS, _SUBJECTS, _PLACES)]
    return f"How do I {words[0]} the {words[1]} {words[2]}? See ticket {number}."


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer of the guard.

    Attributes:
        verdict: ``allow`` or ``block``.
        route: ``probe`` or ``expert``; None if the server does not return it.
        reason: Reason of the verdict; None if the server does not return it.
    """

    verdict: str
    route: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Door:
    """Address and format of the requests to a server.

    Attributes:
        url: Address.
        body: Makes the body of a request from its text.
        read: Makes an answer from the JSON of a response.
        headers: Headers of each request.
    """

    url: str
    body: Callable[[str], dict[str, Any]]
    read: Callable[[Any], Answer]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Outcomes:
    """Results of the requests.

    Attributes:
        answers: Answers by number.
        lost: Number and kind of failure of each request without an answer.
        latencies: Seconds from the due time of each request to its answer.
        seconds: Seconds from the first request to the last answer.
    """

    answers: dict[int, Answer] = field(default_factory=dict)
    lost: list[tuple[int, str]] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def percentile(self, share: float) -> float:
        """Return a percentile of the latencies in milliseconds."""
        return 1000 * float(np.percentile(self.latencies, 100 * share)) if self.latencies else float("nan")


async def closed_loop(door: Door, numbers: Iterator[int], *, clients: int) -> Outcomes:
    """Send requests from several clients until the numbers end. Each client sends one request at a time."""
    outcomes = Outcomes()
    start = time.perf_counter()
    async with _session(clients) as session:

        async def client() -> None:
            for number in numbers:
                await _send(session, door, number, time.perf_counter(), outcomes)

        await asyncio.gather(*(client() for _ in range(clients)))
    outcomes.seconds = time.perf_counter() - start
    return outcomes


async def open_loop(door: Door, numbers: Iterator[int], *, rate: float, seconds: float, seed: int) -> Outcomes:
    """Send requests at the times of a Poisson process.

    Args:
        door: Address and format.
        numbers: Numbers of the texts.
        rate: Requests a second, on average.
        seconds: Length of the run.
        seed: Seed of the Poisson process.
    """
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, size=int(2 * rate * seconds) + 100))
    outcomes = Outcomes()
    tasks: list[asyncio.Task[None]] = []
    async with _session(0) as session:
        start = time.perf_counter()
        for due in itertools.takewhile(lambda at: at < seconds, arrivals.tolist()):
            await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
            tasks.append(asyncio.create_task(_send(session, door, next(numbers), start + due, outcomes)))
        await asyncio.gather(*tasks)
        outcomes.seconds = time.perf_counter() - start
    return outcomes


def _session(connections: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=_TIMEOUT, connector=aiohttp.TCPConnector(limit=connections))


async def _send(session: aiohttp.ClientSession, door: Door, number: int, due: float, outcomes: Outcomes) -> None:
    try:
        async with session.post(door.url, json=door.body(text(number)), headers=door.headers) as response:
            if response.status != 200:  # noqa: PLR2004  # HTTP OK
                outcomes.lost.append((number, f"HTTP {response.status}"))
                return
            outcomes.answers[number] = door.read(await response.json())
    except (aiohttp.ClientError, TimeoutError, KeyError, ValueError) as error:
        outcomes.lost.append((number, type(error).__name__))
        return
    outcomes.latencies.append(time.perf_counter() - due)
