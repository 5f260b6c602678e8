"""Connections that cost a client nothing keep no other client out, whatever they wait with."""

import asyncio
import json
import logging
import os
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from ctd_guardrail.errors import ConfigError
from ctd_guardrail.sidecar import connections as sidecar_connections
from ctd_guardrail.sidecar.connections import Connection, ConnectionCounts, Connections, Listener
from ctd_guardrail.sidecar.settings import Limits
from tests.support.held_connections import HELD, hold
from tests.support.waiting import wait_until

resource = pytest.importorskip("resource")  # not on Windows, where the limit does not hold

BODY = json.dumps({"text": "a plain question"}).encode()
WHOLE = (
    b"POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)
) + BODY


def is_closed(connection: socket.socket) -> bool:
    """Read until the server closes the connection; fails where it does not."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass
    return True


def answers(connection: socket.socket, word: bytes) -> bool:
    """Read until the answer holds a word; fails where the server closes before or says something else."""
    answer = b""
    while word not in answer:
        part = connection.recv(4096)
        assert part, answer
        answer += part
    return True


@pytest.mark.parametrize("sent", HELD.values(), ids=HELD)
def test_at_the_limit_the_connection_that_has_waited_longest_makes_room(gated: Callable[..., Any], sent: bytes) -> None:
    sidecar, guard = gated(limits=Limits(connections=8, concurrency=4))
    with ExitStack() as stack:
        held = hold(stack, sidecar.url, sent, 40)
        assert all(is_closed(connection) for connection in held[:20])
        assert httpx.get(f"{sidecar.url}/health/ready").status_code == 200
        assert httpx.post(f"{sidecar.url}/v1/check", json={"text": "a question"}).status_code == 200
        wait_until(lambda: sidecar.service.connections.open <= 8)
    assert sidecar.service.connections.closed["evicted"] >= 32
    assert guard.ended == 1


def test_a_request_that_is_being_answered_is_never_closed_to_make_room(gated: Callable[..., Any]) -> None:
    sidecar, guard = gated(limits=Limits(connections=8, concurrency=7))
    guard.seconds = 1.0
    with ExitStack() as stack:
        working = hold(stack, sidecar.url, WHOLE, 7)
        wait_until(lambda: guard.started == 7)
        hold(stack, sidecar.url, b"", 100)
        assert httpx.get(f"{sidecar.url}/health/live").status_code == 200
        assert all(answers(connection, b'"verdict":"allow"') for connection in working)
    assert (guard.ended, guard.cancelled) == (7, 0)


def test_a_client_that_goes_on_with_its_request_is_not_the_first_to_make_room(gated: Callable[..., Any]) -> None:
    sidecar, guard = gated(limits=Limits(connections=8, concurrency=4))
    with ExitStack() as stack:
        (client,) = hold(stack, sidecar.url, HELD["a request, once"], 1)
        assert answers(client, b'"live"')
        (connection,) = sidecar.connections._open.values()

        def crowd() -> None:
            hold(stack, sidecar.url, b"", 6)
            assert httpx.get(f"{sidecar.url}/health/live").status_code == 200  # they have been accepted before it

        crowd()
        for sent in (WHOLE[:30], WHOLE[30:-5]):
            before = connection.phase
            client.sendall(sent)
            wait_until(lambda before=before: connection.phase is not before)
            crowd()
        client.sendall(WHOLE[-5:])
        assert answers(client, b'"verdict":"allow"')
    assert guard.ended == 1


def drip(connection: socket.socket, line: bytes) -> None:
    """Send a header line time and again, until the server has had enough."""
    try:
        while True:
            connection.sendall(line)
            time.sleep(0.02)
    except OSError:
        pass


def test_headers_that_do_not_come_in_time_end_the_connection(gated: Callable[..., Any]) -> None:
    sidecar, _ = gated(limits=Limits(header_s=1.0))
    with ExitStack() as stack:
        for sent in (HELD["nothing"], HELD["half of the headers"]):
            assert is_closed(hold(stack, sidecar.url, sent, 1)[0])
        # Neither a byte now and then nor an earlier request buys more time.
        (dripping,) = hold(stack, sidecar.url, HELD["half of the headers"], 1)
        drip(dripping, b"X-More: 1\r\n")
        (second,) = hold(stack, sidecar.url, HELD["a request, once"], 1)
        assert answers(second, b'"live"')
        drip(second, HELD["half of the headers"][:1])
        (unread,) = hold(stack, sidecar.url, HELD["a body that no route reads"], 1)
        assert answers(unread, b'"live"')
        drip(unread, b"x")
    wait_until(lambda: sidecar.service.connections.open == 0)
    assert sidecar.service.connections.closed["too_slow"] == 5


def test_a_slow_body_and_a_slow_answer_outlive_the_headers_deadline(gated: Callable[..., Any]) -> None:
    sidecar, guard = gated(limits=Limits(header_s=1.0))
    guard.seconds = 1.5
    with ExitStack() as stack:
        (slow,) = hold(stack, sidecar.url, WHOLE[:-5], 1)
        time.sleep(1.5)
        slow.sendall(WHOLE[-5:])
        assert answers(slow, b'"verdict":"allow"')
    assert not sidecar.service.connections.closed.total()


def test_what_is_no_http_is_counted_and_not_logged(gated: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    sidecar, _ = gated()
    with ExitStack() as stack:
        for sent in (b"\x16\x03\x01\r\n\r\n", b"GET /nowhere SPDY\r\n\r\n"):
            for connection in hold(stack, sidecar.url, sent, 50):
                assert answers(connection, b"HTTP/1.1 400 ")
                assert is_closed(connection)
        # A body that goes wrong when the answer has been given already.
        chunked = b"GET /health/live HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        for connection in hold(stack, sidecar.url, chunked, 5):
            assert answers(connection, b'"live"')
            connection.sendall(b"no number\r\n")
            assert is_closed(connection)
        upgrade = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        assert all(answers(connection, b'"live"') for connection in hold(stack, sidecar.url, upgrade, 50))
    assert sidecar.service.connections.closed["malformed"] == 105
    # Another test may have let uvicorn tell that it starts.
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_answer_is_not_held_back_until_the_client_has_taken_its_head(gated: Callable[..., Any]) -> None:
    sidecar, _ = gated()
    with ExitStack() as stack:
        (client,) = hold(stack, sidecar.url, HELD["a request, once"], 1)
        assert answers(client, b'"live"')
        (connection,) = sidecar.connections._open.values()
        # Head and body are written one after the other: without this option the body waits for an acknowledgement.
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_slow_body_holds_no_slot(gated: Callable[..., Any]) -> None:
    sidecar, guard = gated(limits=Limits(concurrency=1))
    with ExitStack() as stack:
        hold(stack, sidecar.url, HELD["half of the body"], 20)
        assert httpx.post(f"{sidecar.url}/v1/check", json={"text": "a question"}).status_code == 200
    assert guard.ended == 1


def test_long_bodies_that_do_not_end_are_bounded_together_and_short_ones_go_on(gated: Callable[..., Any]) -> None:
    sidecar, guard = gated(limits=Limits(concurrency=1, body_bytes=1 << 20, body_s=60.0))
    head = b"POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (1 << 20)
    with ExitStack() as stack:
        hold(stack, sidecar.url, head + b" " * 1_000_000, 1)
        wait_until(lambda: sidecar.gate._read_bytes > 900_000)
        (refused,) = hold(stack, sidecar.url, head + b" " * 300_000, 1)
        assert answers(refused, b'"overloaded"')
        assert httpx.post(f"{sidecar.url}/v1/check", json={"text": "a question"}).status_code == 200
    wait_until(lambda: sidecar.gate._read_bytes == 0)
    long = {"text": "x" * 500_000}
    assert httpx.post(f"{sidecar.url}/v1/check", json=long).status_code == 200
    assert guard.ended == 2


def test_handshakes_that_do_not_end_count_and_have_a_deadline(gated: Callable[..., Any], tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    make = (
        "openssl",
        "req",
        "-x509",
        "-nodes",
        "-newkey",
        "rsa:2048",
        "-days",
        "2",
        "-keyout",
        key,
        "-out",
        certificate,
    )
    try:
        subprocess.run([*make, *subject, "-keyout", key, "-out", certificate], check=True, capture_output=True)  # noqa: S603  # fixed words
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    limits = Limits(connections=8, concurrency=4, header_s=2.0)
    sidecar, _ = gated(limits=limits, tls_cert=certificate, tls_key=key)
    url = f"https://{sidecar.url.partition('://')[2]}"
    trusted = ssl.create_default_context(cafile=str(certificate))
    with ExitStack() as stack:
        held = hold(stack, url, b"", 40)
        assert httpx.get(f"{url}/health/live", verify=trusted).status_code == 200
        assert all(is_closed(connection) for connection in held)
    wait_until(lambda: sidecar.service.connections.open == 0)
    closed = sidecar.service.connections.closed
    assert closed["evicted"] >= 32
    assert closed["too_slow"] >= 1


async def test_where_every_connection_is_being_answered_a_new_one_is_refused() -> None:
    counts = ConnectionCounts()
    connections = Connections(Limits(connections=2), counts, idle_s=30.0)
    pairs = [socket.socketpair() for _ in range(3)]
    taken = [Connection(fileno=ours.detach()) for ours, _ in pairs]
    for connection in taken[:2]:
        assert connections.add(connection)
        connections.works(connection)
    assert not connections.add(taken[2])
    connections.rests(taken[0])
    taken[2].close()
    assert (counts.open, +counts.closed) == (2, Counter(refused=1))
    for connection in taken[:2]:
        connection.close()
    assert counts.open == 0
    connections.report()
    for _, theirs in pairs:
        theirs.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener(fileno=socket.create_server(("127.0.0.1", 0), backlog=128).detach())
    listener.settimeout(0)
    yield listener
    listener.close()


async def test_no_more_is_accepted_at_a_time_than_descriptors_are_kept_for(listener: Listener) -> None:
    counts = ConnectionCounts()
    listener.connections = Connections(Limits(connections=4), counts, idle_s=30.0)
    taken = []
    with ExitStack() as stack:
        hold(stack, f"http://127.0.0.1:{listener.getsockname()[1]}", b"", 100)
        # As the event loop does it: one after the other, before anything that has been dropped is closed.
        with suppress(BlockingIOError):
            while True:
                taken.append(listener.accept()[0])
        assert len(taken) == counts.open == 4 + 32
        dropped = [connection for connection in taken if connection.is_dropped]
        assert dropped == taken[:-4]
        for connection in dropped:
            connection.close()
        taken.append(listener.accept()[0])
        assert counts.open == 5
    for connection in taken:
        connection.close()
    listener.connections.report()


async def test_where_others_have_taken_the_descriptors_a_connection_gives_its_own(listener: Listener) -> None:
    counts = ConnectionCounts()
    listener.connections = Connections(Limits(connections=1000), counts, idle_s=30.0)
    with ExitStack() as stack:
        hold(stack, f"http://127.0.0.1:{listener.getsockname()[1]}", b"", 3)
        first, _ = listener.accept()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (first.fileno() + 1, hard))  # descriptors below are taken or free
        others = []
        try:
            with suppress(OSError):
                while True:
                    others.append(os.dup(0))
            with pytest.raises(BlockingIOError):
                listener.accept()
            assert (first.is_dropped, +counts.closed) == (True, Counter(evicted=1))
            # There is nothing to give any more: the event loop waits a while, and logs it.
            with pytest.raises(OSError, match="Too many open files"):
                listener.accept()
            first.close()
            second, _ = listener.accept()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for other in others:
                os.close(other)
        second.close()
    listener.connections.report()


async def test_the_log_has_one_line_for_all_that_is_closed_in_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    connections = Connections(Limits(connections=2), ConnectionCounts(), idle_s=30.0)
    for _ in range(1000):
        connections.note(sidecar_connections.Closed.EVICTED)
        connections.note(sidecar_connections.Closed.TOO_SLOW)
    await asyncio.sleep(0)
    assert not caplog.records
    connections.report()
    connections.report()
    assert [record.getMessage() for record in caplog.records] == [
        "connections closed: 1000 evicted, 1000 too_slow; 0 of 2 are open"
    ]


@pytest.mark.parametrize(
    ("descriptors", "concurrency", "fitted"),
    [
        (1024, 256, (768, 256)),
        (4096, 256, (3840, 256)),
        (256, 256, (128, 96)),
        (3, 256, (2, 1)),
        (1_000_000, 256, (4_096, 256)),
        (None, 256, (4_096, 256)),
    ],
)
def test_the_limit_leaves_descriptors_and_a_connection_that_may_be_closed(
    descriptors: int | None, concurrency: int, fitted: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidecar_connections, "_descriptors", lambda: descriptors)
    limits = sidecar_connections.fit_to_descriptors(Limits(concurrency=concurrency))
    assert (limits.connections, limits.concurrency) == fitted


def test_a_limit_that_was_set_holds_unless_it_takes_every_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = sidecar_connections.fit_to_descriptors
    monkeypatch.setattr(sidecar_connections, "_descriptors", lambda: 1024)
    given = fit(Limits(concurrency=256, connections=10))
    assert (given.connections, given.concurrency) == (10, 9)
    assert fit(Limits(connections=928)).connections == 928
    with pytest.raises(ConfigError, match="929 connections leave too few of the 1024 file descriptors"):
        fit(Limits(connections=929))
    monkeypatch.setattr(sidecar_connections, "_descriptors", lambda: None)
    assert fit(Limits(connections=1_000_000)).connections == 1_000_000
