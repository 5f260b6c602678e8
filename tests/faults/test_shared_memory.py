"""The server on which replicas share their memory: when it fails, and when someone else writes to it."""

import random
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretBytes
from redis import Redis

from ctd_guardrail.decision import Decision, Reason, Route, Verdict
from ctd_guardrail.runtime.signed_decisions import SignedDecisions
from tests.support.redis_process import PROGRAMS, RedisProcess
from tests.support.replicas import Replicas

pytestmark = pytest.mark.skipif(not PROGRAMS, reason="no redis-server or valkey-server here")

TURNS = 10
ANSWERS: dict[str, bytes | None] = {
    "silent": None,
    "closing": b"",
    "errors": b"-ERR broken\r\n" * 8,
    "nonsense": b"HTTP/1.1 200 OK\r\n\r\n",
    "too much": b"$-7\r\n*999999999999\r\n",
    "number": b":7\r\n" * 8,
}


@contextmanager
def answering(answer: bytes | None) -> Iterator[str]:
    """Answer every question on every connection with the same bytes; None: with nothing; none: hang up."""
    held = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            held.append(connection)
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    def talk(connection: socket.socket) -> None:
        try:
            while connection.recv(65_536):
                if answer == b"":
                    connection.close()
                    return
                if answer is not None:
                    connection.sendall(answer)
        except OSError:
            return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}/0"
        listening.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


def draw_turns(number: int) -> list[str]:
    words = ("fine", "doubtful", "doubtful and harmful", "harmful")
    return [f"{random.choices(words, (5, 5, 1, 1))[0]} {number} {turn}" for turn in range(TURNS)]


async def count_equal(replicas: Replicas, turns: list[str], after: Callable[[int], None] = lambda _: None) -> int:
    """Send a conversation; return the number of verdicts that are those of one process alone."""
    alone = Replicas(1, None)
    try:
        wanted = await alone.talk(turns)
    finally:
        alone.close()
    return sum(map(Verdict.__eq__, await replicas.talk(turns, after), wanted))


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_a_server_that_answers_wrongly_costs_no_verdict(
    answer: bytes | None, trials: Callable[..., int], record: Callable[..., None]
) -> None:
    total = trials(full=30, reduced=2)
    held = 0
    with answering(answer) as url:
        for number in range(total):
            replicas = Replicas(3, url, timeout_s=0.05)
            held += await count_equal(replicas, draw_turns(number))
            assert sum(memory.outages + memory.forgeries for memory in replicas.memories) or answer == ANSWERS["number"]
            replicas.close()
    record("memory_outage", held, total * TURNS)


async def test_a_server_that_is_emptied_or_goes_away_costs_no_verdict(
    trials: Callable[..., int], record: Callable[..., None], tmp_path: Path
) -> None:
    total = trials(full=30, reduced=3)
    held = 0
    server = RedisProcess(tmp_path)
    with Redis.from_url(server.url) as client:

        def empty(turn: int) -> None:
            if turn % 3 == 0:
                client.flushall()

        for number in range(total):
            replicas = Replicas(3, server.url)
            held += await count_equal(replicas, draw_turns(number), empty)
            replicas.close()
    for number in range(total):
        replicas, stop = Replicas(3, server.url), random.randrange(TURNS)
        held += await count_equal(
            replicas, draw_turns(number), lambda turn, stop=stop: server.stop() if turn == stop else None
        )
        replicas.close()
        server.start()
    server.stop()
    for number in range(total):
        replicas = Replicas(3, server.url)
        held += await count_equal(replicas, draw_turns(number))
        replicas.close()
    record("memory_outage", held, 3 * total * TURNS)


async def test_an_entry_that_was_written_without_the_key_opens_nothing(
    trials: Callable[..., int], record: Callable[..., None], tmp_path: Path
) -> None:
    total = trials(full=10_000, reduced=200)
    server = RedisProcess(tmp_path)
    allowed = Decision(Verdict.ALLOW, Route.PROBE, Reason.PROBE_SAFE, 0.1, -0.5)
    foreign = SignedDecisions(SecretBytes(b"the secret of someone else"))
    replicas = Replicas(1, server.url)
    await replicas.check([{"role": "user", "content": "fine"}])
    held = 0
    with Redis.from_url(server.url) as client:
        of_another_turn = next(entry for key in client.scan_iter() if b"allow" in (entry := text(client, key)))
        for number in range(total):
            client.flushall()
            refused = [{"role": "user", "content": f"harmful {number}"}]
            await replicas.check(refused)
            (name,) = (key for key in client.scan_iter() if b"block" in text(client, key))
            entry = text(client, name)
            bit = random.randrange(8 * len(entry))
            changed = bytearray(entry)
            changed[bit // 8] ^= 1 << bit % 8
            client.set(
                name,
                random.choice(
                    [
                        bytes(changed),
                        entry[: random.randrange(len(entry))],
                        entry.replace(b"block", b"allow").replace(b"unsafe", b"safe"),
                        secrets.token_bytes(16) + entry[16:].replace(b"block", b"allow"),
                        of_another_turn,
                        foreign.write(name.rsplit(b":", 1)[-1].decode(), allowed),
                    ]
                ),
            )
            replicas.forget()
            decision = await replicas.check(refused)
            held += (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.PROBE_UNSAFE)
    assert replicas.memories[0].forgeries == total
    replicas.close()
    server.stop()
    record("planted_verdict", held, total)


def text(client: Redis, key: bytes) -> bytes:
    return client.get(key) or b"" if client.type(key) == b"string" else b""
