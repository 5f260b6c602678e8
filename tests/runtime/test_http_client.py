from collections.abc import AsyncIterator

import httpx
import pytest

from ctd_guardrail.runtime.http_client import read_body


def response(*chunks: bytes, breaks: bool = False) -> tuple[httpx.Response, list[bytes]]:
    """Return a response, and the chunks of it that were read."""
    sent: list[bytes] = []

    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            sent.append(chunk)
            yield chunk
        if breaks:
            raise httpx.ReadError("reset")

    return httpx.Response(200, content=stream()), sent


async def test_a_body_is_read_up_to_one_byte_behind_its_limit() -> None:
    assert await read_body(response(b"ab", b"cd")[0], limit=4) == b"abcd"
    endless, sent = response(b"ab", b"cdef", b"gh")
    assert await read_body(endless, limit=4) == b"abcde"
    assert sent == [b"ab", b"cdef"]


async def test_a_body_that_is_cut_is_an_error_unless_the_caller_takes_it() -> None:
    with pytest.raises(httpx.ReadError):
        await read_body(response(b"ab", breaks=True)[0], limit=4)
    assert await read_body(response(b"ab", breaks=True)[0], limit=4, may_be_cut=True) == b"ab"
