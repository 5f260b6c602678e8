"""The thread of calls closes every client, also one that is being closed when the thread ends."""

from __future__ import annotations

import asyncio
import threading

import pytest

from ctd_guardrail.runtime.io_thread import IoThread


class Client:
    """Closes once, as httpx does: a second call does nothing, and a cancelled one leaves its connection open."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.is_closed = False

    async def aclose(self) -> None:
        if not self.has_begun.is_set():
            self.has_begun.set()
            await asyncio.sleep(0.05)
            self.is_closed = True


class Owner:
    """Uses a client, until it is collected."""


@pytest.fixture
def io() -> IoThread:
    thread = IoThread()
    thread.submit(asyncio.sleep(0)).result(60)
    return thread


def test_a_client_that_is_being_closed_is_closed_when_the_thread_ends(io: IoThread) -> None:
    client, owner = Client(), Owner()
    io.close_with(owner, client)
    del owner
    assert client.has_begun.wait(60)
    io.close()
    assert client.is_closed


def test_a_client_whose_owner_lives_is_closed_with_the_thread(io: IoThread) -> None:
    client, owner = Client(), Owner()
    io.close_with(owner, client)
    io.close()
    assert client.is_closed


def test_calls_in_progress_are_cancelled(io: IoThread) -> None:
    call = io.submit(asyncio.sleep(3600))
    io.close()
    assert call.cancelled()
