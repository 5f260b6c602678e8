"""What is fuzzed, and what must hold of every input: an answer in its range, or one of the package's own errors."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from ctd_guardrail.errors import ExpertVerdictError, InputError, PolicyFormatError, PolicyIntegrityError
from ctd_guardrail.experts.verdict import p_unsafe_from_json, p_unsafe_from_logprobs
from ctd_guardrail.policy.manifest import Manifest
from ctd_guardrail.policy.store import read_policy
from ctd_guardrail.sidecar.messages import ChatRequest, CheckRequest, ContentsRequest
from ctd_guardrail.text.conversation import Context, Conversation
from ctd_guardrail.text.normalise import normalise
from tests.support.policies import write_plain_policy

__all__ = ["TARGETS", "WORDS"]

WORDS: Final = (
    *(
        "verdict",
        "safe",
        "unsafe",
        "confidence",
        "token",
        "logprob",
        "Yes",
        "No",
        '{"',
        '":',
        "[",
        "]",
        "}",
        "0.5",
        "1e9",
        "<think>",
        "</think>",
        "```json\n",
        "\n```",
    ),
    *("messages", "text", "role", "user", "content", "type", "contents", "overrides", "assistant", "tool"),
    *("activations", "layers", "probe", "components", "rows", "alpha", "calibration", "__metadata__", "data_offsets"),
    *("probe.bias", "F32", "F64", "U64", "BF16", "shape", "dtype", "\\ud800", "\u200d", "\u0301", "\u0430", "NaN"),
)
"""Words that inputs are made of."""

_FOLDER: Final = Path(tempfile.mkdtemp(prefix="ctd-fuzz-"))
_CONTAINERS: Final = 96
_DEEPEST: Final = 6
_SCALARS: Final = (None, True, False, 0, 1, -1, 0.5, 0.9, 2**63, 10**400, 1e-5, math.nan, math.inf, "", [], {})
_MANIFEST, _TENSORS = _FOLDER / "policy.json", _FOLDER / "policy.safetensors"


def _text(data: bytes) -> str:
    """Return any string, lone surrogates included: what a byte begins says how the rest is read."""
    if data[:1] < b"\x80":
        return data[1:].decode("utf-8", "surrogateescape")
    whole = data[1 : 1 + len(data[1:]) // 2 * 2]
    return whole.decode("utf-16-le", "surrogatepass")


def _json(data: bytes) -> str:
    """Return JSON that bytes spell, a value a byte: random text is hardly ever JSON. Or the text as it stands."""
    if data[:1] < b"\x20":
        return data[1:].decode("utf-8", "surrogateescape")
    return json.dumps(_value(iter(data)))


def _value(codes: Iterator[int], depth: int = 0) -> object:
    code = next(codes, 0)
    if code >= _CONTAINERS or depth > _DEEPEST:
        return (*_SCALARS, *WORDS)[code % (len(_SCALARS) + len(WORDS))]
    size = code >> 1 & 7
    if code & 1:
        return [_value(codes, depth + 1) for _ in range(size)]
    return {WORDS[next(codes, 0) % len(WORDS)]: _value(codes, depth + 1) for _ in range(size)}


def _verdict(data: bytes) -> None:
    text = _json(data)
    try:
        p = p_unsafe_from_json(text)
    except ExpertVerdictError:
        p = 1.0
    assert 0.0 <= p <= 1.0
    if p < 0.5:
        # Reasoning before it and a fence around it hold no other verdict.
        assert json.loads(text[text.rindex("{") : text.rindex("}") + 1])["verdict"] == "safe"
    try:
        alternatives = json.loads(text)
    except (ValueError, RecursionError):
        return
    with contextlib.suppress(ExpertVerdictError):
        assert 0.0 <= p_unsafe_from_logprobs(alternatives) <= 1.0


def _normaliser(data: bytes) -> None:
    text = _text(data)
    normal = normalise(text)
    assert normalise(normal) == normal
    assert len(normal) <= 18 * len(text)
    assert bool(normal.strip()) or not text.strip()
    normal.encode()


def _policy(data: bytes) -> None:
    mode, rest = data[:1], data[1:]
    if not _FOLDER.joinpath("sound.json").exists():
        write_plain_policy(_FOLDER, rows=8)
        _MANIFEST.rename(_FOLDER / "sound.json")
        _TENSORS.rename(_FOLDER / "sound.safetensors")
    manifest = json.loads((_FOLDER / "sound.json").read_bytes())
    blob = (_FOLDER / "sound.safetensors").read_bytes()
    if mode < b"\x40":
        _write(rest, blob)
    elif mode < b"\x80":
        # An object of changes, by someone who knows how to hash the result.
        try:
            changes = json.loads(_json(rest))
        except (ValueError, RecursionError):
            return
        _write(_sealed(manifest | changes if isinstance(changes, dict) else manifest), blob)
    else:
        size = len(rest) if mode < b"\xc0" else int.from_bytes(rest[:2], "little")
        forged = size.to_bytes(8, "little") + rest
        _write(_sealed(manifest | {"tensors_sha256": hashlib.sha256(forged).hexdigest()}), forged)
    with contextlib.suppress(PolicyFormatError, PolicyIntegrityError):
        read_policy(_FOLDER)


def _sealed(fields: dict[str, object]) -> bytes:
    with contextlib.suppress(ValidationError):
        fields |= {"pins_sha256": Manifest.model_validate(fields).hash_pins()}
    return json.dumps(fields).encode("utf-8", "surrogatepass")


def _write(manifest: bytes, blob: bytes) -> None:
    _MANIFEST.write_bytes(manifest)
    _TENSORS.write_bytes(blob)


def _body(data: bytes) -> None:
    for model in (CheckRequest, ContentsRequest, ChatRequest):
        try:
            request = model.model_validate_json(_json(data).encode("utf-8", "surrogatepass"))
        except ValidationError:
            continue
        messages = request.conversation() if isinstance(request, CheckRequest) else getattr(request, "messages", [])
        for text in getattr(request, "contents", ()):
            messages = [*messages, {"role": "user", "content": text}]
        for non_text in ("refuse", "drop", "mark"):
            try:
                conversation = Conversation.from_messages(messages, non_text=non_text)
            except InputError:
                continue
            for context in Context:
                for unit in conversation.units(context):
                    assert len(unit.digest()) == 64
                    unit.plain_text().encode()


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "verdict": _verdict,
    "normaliser": _normaliser,
    "policy": _policy,
    "body": _body,
}
"""A target by its name: raises where something does not hold."""
