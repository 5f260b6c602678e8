"""All text of one chat message that a model reads: its content and more.

A main LLM reads the name of a speaker, and the names and arguments of tool calls, as it reads the content. Each of
these texts is joined to the content, on lines of its own, in the order in which chat templates write them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

__all__ = ["size_of", "texts_of"]

_SPOKEN_BEFORE: Final = ("name", "reasoning_content", "reasoning")
_CALLS: Final = ("tool_calls", "function_call")
_BESIDE_CONTENT: Final = (*_SPOKEN_BEFORE, "refusal", *_CALLS, "tool_call_id")
# A part of this type holds its text under a key of the same name.
_TEXT_PARTS: Final = frozenset({"text", "refusal"})
# Machines write the identifier and kind of a call. A value of another form is text.
_LABELS: Final = frozenset({"id", "type", "index"})
_LABEL: Final = re.compile(r"[A-Za-z0-9_.:-]{0,64}")
# Keys under which a part holds an image, a sound or a file, or its address.
_DATA: Final = frozenset({"data", "url", "file_data", "file_id", "format", "detail", "mime_type", "media_type"})
# Keys whose values are enough without the key: `arguments` of OpenAI, `args` of NeMo Guardrails and LangChain.
_PARTS: Final = frozenset({"name", "arguments", "args", "input"})
_WRAPPERS: Final = frozenset({"function", "custom"})


def texts_of(message: Mapping[str, Any]) -> list[str | None] | None:
    """Return the texts of a message; None in the place of each part that is not text.

    Args:
        message: A chat message in the form of OpenAI or of NeMo Guardrails.

    Returns:
        The texts, or None where the message has no content at all.
    """
    if not any(map(message.get, _BESIDE_CONTENT)):  # nearly every message
        return _content_of(message.get("content"))
    before = [text for key in _SPOKEN_BEFORE for text in _strings(message.get(key))]
    if not _is_label(message.get("tool_call_id", "")):
        before += _strings(message["tool_call_id"])
    content = _content_of(message.get("content"))
    after = list(_strings(message.get("refusal")))
    for key in _CALLS:
        calls = message.get(key)
        after += [text for call in (calls if isinstance(calls, list) else [calls]) for text in _texts_of_call(call)]
    if content is None and not before and not after:
        return None
    return [*before, *(content or ()), *after]


def size_of(message: object) -> int:
    """Return the approximate number of characters of a message, which may be any object. Parses nothing."""
    if not isinstance(message, Mapping):
        return 0
    content = message.get("content")
    if isinstance(content, str) and not any(map(message.get, _BESIDE_CONTENT)):
        return len(content)
    return sum(len(text) for text in _strings([content, *map(message.get, _BESIDE_CONTENT)]) if text is not None)


def _content_of(content: object) -> list[str | None] | None:
    if content is None:
        return None
    if isinstance(content, str):
        return [content]
    return [text for part in (content if isinstance(content, list) else [content]) for text in _texts_of_part(part)]


def _texts_of_part(part: object) -> Iterator[str | None]:
    if isinstance(part, str):
        yield part
        return
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get(kind) if isinstance(part, Mapping) and isinstance(kind, str) and kind in _TEXT_PARTS else None
    if isinstance(text, str):
        yield text
        return
    # Not text, or text in an unknown form. An endpoint may read the words in it.
    yield None
    if isinstance(part, Mapping):
        yield from filter(None, _strings(_without_data(part)))


def _without_data(part: object) -> object:
    """Return the part of a message without its labels and without images, sounds and files."""
    if not isinstance(part, Mapping):
        return part
    kept = {key: value for key, value in part.items() if key not in _DATA and not (key in _LABELS and _is_label(value))}
    return [_without_data(value) for value in kept.values() if not str(value).startswith("data:")]


def _texts_of_call(call: object, *, is_whole: bool = True) -> Iterator[str | None]:
    if not isinstance(call, Mapping):
        yield from _strings(call)
        return
    # The name first, as templates write it, whatever the order of the keys.
    for key, value in sorted(call.items(), key=lambda pair: pair[0] != "name"):
        if is_whole and key in _WRAPPERS:
            yield from _texts_of_call(value, is_whole=False)
        elif key in _PARTS:
            yield from _strings(_parsed(value) if isinstance(value, str) and key != "name" else value)
        elif not (key in _LABELS and _is_label(value)):
            yield from _strings([key, value])


def _is_label(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and _LABEL.fullmatch(value) is not None)


def _parsed(text: str) -> object:
    """Return parsed JSON, as chat templates parse it too. An escape in raw JSON would hide letters from a probe."""
    try:
        # Pairs: of two equal keys a mapping would show one.
        return json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return text


def _strings(value: object) -> Iterator[str | None]:
    """Yield every key and value inside, however deep, in their order; None for what JSON cannot hold."""
    # A stack instead of recursion, because the sender chooses the depth.
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            waiting.extend(reversed([inner for pair in each.items() for inner in pair]))
        elif isinstance(each, list | tuple):
            waiting.extend(reversed(each))
        elif isinstance(each, str):
            if each.strip():
                yield each
        elif isinstance(each, float | bool):
            yield str(each)
        elif isinstance(each, int):
            # Python refuses to print integers of more than some thousand digits in base 10.
            yield str(each) if abs(each) < 1 << 64 else hex(each)
        elif each is not None:
            yield None
