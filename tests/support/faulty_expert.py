"""A loopback judge on real sockets that answers well, or fails in a chosen way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FAULTS", "Behaviour", "Judge", "Judges", "answer", "chosen_by_path", "hang", "running"]

Writer = asyncio.StreamWriter
Behaviour = Callable[[Writer], Awaitable[None]]


def answer(body: object, *, status: int = 200, headers: str = "") -> Behaviour:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def write(writer: Writer) -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n{headers}\r\n"
        writer.write(head.encode() + raw)
        await writer.drain()

    return write


async def hang(writer: Writer) -> None:
    del writer
    await asyncio.sleep(3600)


async def slow_drip(writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)


async def cut_body(writer: Writer) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"choices": [')
    await writer.drain()
    writer.close()


async def endless_body(writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b" " * 65536
    while True:
        writer.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        await writer.drain()


async def no_http(writer: Writer) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    await writer.drain()
    writer.close()


SECRET_ECHO = b'{"error": {"message": "you said: canary-text with key canary-key"}}'
FAULTS: dict[str, Behaviour] = {
    "http_401": answer(SECRET_ECHO, status=401),
    "http_404": answer(SECRET_ECHO, status=404),
    "http_429": answer(SECRET_ECHO, status=429, headers="Retry-After: 1\r\n"),
    "http_500": answer(SECRET_ECHO, status=500),
    "http_503": answer(SECRET_ECHO, status=503),
    "redirect": answer(b"", status=307, headers="Location: /elsewhere\r\n"),
    "hang": hang,
    "slow_drip": slow_drip,
    "cut_body": cut_body,
    "endless_body": endless_body,
    "no_http": no_http,
    "bad_json": answer(b"canary-text, not JSON"),
    "deep_json": answer(b"[" * 100_000),
    "binary": answer(b"\xff\xfe\x00\xd8"),
    "empty": answer(b""),
    "wrong_schema": answer({"detail": "canary-text"}),
    "no_choices": answer({"choices": []}),
    "null_choice": answer({"choices": [None]}),
    "no_logprobs": answer({"choices": [{"message": {"role": "assistant", "content": "No"}}]}),
    "null_logprobs": answer({"choices": [{"message": {"content": "No"}, "logprobs": None}]}),
    "empty_logprobs": answer({"choices": [{"logprobs": {"content": []}}]}),
}


def chosen_by_path(path: str) -> Behaviour | None:
    """Return the fault that an address names, as in http://127.0.0.1:PORT/http_503/v1, if it names one."""
    return FAULTS.get(path.split("/")[1])


@dataclass
class Judge:
    """The server, and what it saw."""

    behaviour: Behaviour
    port: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    connections: int = 0
    disconnections: int = 0
    disconnected: threading.Event = field(default_factory=threading.Event)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def failing_url(self, fault: str) -> str:
        """Return the address at which this server always fails in this way."""
        return f"http://127.0.0.1:{self.port}/{fault}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self.connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: Writer) -> bool:
        first = await reader.readexactly(1)
        if first == b"\x16":  # a TLS handshake
            return False
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode()
        lines = [line.split(": ", 1) for line in head.split("\r\n")[1:] if line]
        headers = {name.lower(): value for name, value in lines} | {"path": head.split(" ", 2)[1]}
        body = await reader.readexactly(int(headers["content-length"]))
        self.headers.append(headers)
        self.requests.append(json.loads(body))
        named = chosen_by_path(headers["path"])
        reply = asyncio.ensure_future((named or self.behaviour)(writer))
        gone = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({reply, gone}, return_when=asyncio.FIRST_COMPLETED)
        if reply.done():
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            reply.result()
            return True
        self.disconnections += 1
        self.disconnected.set()
        reply.cancel()
        await asyncio.gather(gone, reply, return_exceptions=True)
        return False


class Judges:
    """Starts judges for a test, and holds the ways in which they behave."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    def start(self, behaviour: Behaviour) -> Judge:
        return self._stack.enter_context(running(behaviour))

    def failing(self, fault: str) -> Judge:
        return self.start(FAULTS[fault])

    def saying(self, **probabilities: float) -> Judge:
        """Start a judge whose first token has these probabilities."""
        return self.start(answer(self.completion(logprobs=self.alternatives(**probabilities))))

    def answering(self, body: object, *, status: int = 200) -> Judge:
        return self.start(answer(body, status=status))

    @staticmethod
    def reply(body: object) -> Behaviour:
        return answer(body)

    @staticmethod
    def completion(content: str = "Yes", logprobs: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": content}}
        if logprobs is not None:
            choice["logprobs"] = {"content": [{"token": content, "logprob": -0.1, "top_logprobs": logprobs}]}
        return {"id": "1", "choices": [choice], "usage": {"total_tokens": 321}}

    @staticmethod
    def alternatives(**probabilities: float) -> list[dict[str, Any]]:
        return [{"token": token, "logprob": math.log(p)} for token, p in probabilities.items()]


@contextlib.contextmanager
def running(behaviour: Behaviour) -> Iterator[Judge]:
    """Run a judge on a thread of its own."""
    judge = Judge(behaviour)
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        server = await asyncio.start_server(judge.serve, "127.0.0.1", 0, backlog=1024)
        judge.port = server.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.001)  # transports close one turn of the loop later

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    ready.wait(5)
    try:
        yield judge
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(5)
        loop.close()
