"""A judge on loopback that fails for a known share of the texts, for measurements under faults.

Its answer depends only on the number in the text, so the sender knows the expected answer. ``python -m
benchmarks.load.faulty_judge --share 0.1`` prints its address, and serves until it is stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
from typing import Final

__all__ = ["FAULTS", "fault_of", "is_unsafe"]

FAULTS: Final = ("unavailable", "cut", "no JSON", "hang")
_NUMBER: Final = re.compile(rb"ticket (\d+)")
_LENGTH: Final = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
# A hang lasts longer than any deadline of a measured client.
_HANG_S: Final = 120.0
# Spreads neighbouring numbers, so that failures are independent of the last digits, which other code uses.
_STRIDE: Final = 7919


def fault_of(number: int, share: float) -> str | None:
    """Return the fault of the judge for the text with this number, or None if it answers.

    Args:
        number: Number in the text.
        share: Share of the numbers that fail.
    """
    place = number * _STRIDE % 100_003
    return FAULTS[place % len(FAULTS)] if place < share * 100_003 else None


def is_unsafe(number: int) -> bool:
    """Return the judge's verdict on the text with this number, if it answers."""
    return number % 3 == 0


class Judge:
    """Server of the judge.

    Args:
        share: Share of the texts for which it fails.
    """

    def __init__(self, share: float) -> None:
        self._share = share

    async def serve(self) -> None:
        """Serve until the process ends. Prints the address once connections are accepted."""
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0, backlog=1024)
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
        await server.serve_forever()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has left
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one call, and return whether the connection stays open."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        found = _NUMBER.findall(body)
        number = int(found[-1]) if found else 0
        fault = fault_of(number, self._share)
        if fault == "hang":
            await asyncio.sleep(_HANG_S)
            return False
        content = b"{" if fault == "no JSON" else _completion(unsafe=is_unsafe(number))
        status = b"503 Service Unavailable" if fault == "unavailable" else b"200 OK"
        writer.write(b"HTTP/1.1 %s\r\nContent-Type: application/json\r\n" % status)
        writer.write(b"Content-Length: %d\r\n\r\n" % len(content))
        writer.write(content[: len(content) // 2] if fault == "cut" else content)
        await writer.drain()
        return fault != "cut"


def _completion(*, unsafe: bool) -> bytes:
    p = 0.98 if unsafe else 0.02
    alternatives = [{"token": "Yes", "logprob": math.log(p)}, {"token": "No", "logprob": math.log1p(-p)}]
    token = {"token": "Yes" if unsafe else "No", "logprob": 0.0, "top_logprobs": alternatives}
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": token["token"]},
        "logprobs": {"content": [token]},
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
    answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}
    return json.dumps(answer | {"usage": usage}).encode()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.1, help="share of the texts for which it fails")
    asyncio.run(Judge(parser.parse_args().share).serve())
