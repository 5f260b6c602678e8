"""From a conversation to token windows, the same offline and online."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from tokenizers import Tokenizer

from ctd_guardrail.activations.source import Windows
from ctd_guardrail.errors import ActivationError, OverlongError
from ctd_guardrail.text.conversation import Conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ConversationTokenizer", "Ids", "TextEncoder", "tokenize"]

Ids = tuple[int, ...]
"""Token ids of a text."""

_PLAIN_TEXT_RULE: Final = "plain text; several turns as 'role: text' lines"
# Some chat templates print the current date. Activations must not change with the calendar.
_TEMPLATE_DATE: Final = "26 Jul 2024"
_FIXED_CLOCK: Final = f"{{%- macro strftime_now(format) -%}}{_TEMPLATE_DATE}{{%- endmacro -%}}"
# Text with more characters than this for each allowed token is refused unread: tokenising it would be the attack.
_CHARACTERS_PER_TOKEN: Final = 16
# Below this many characters a thread hop costs more than tokenising on the spot (about 1 ms).
_INLINE_CHARACTERS: Final = 4096


async def tokenize(tokenizer: Callable[[Conversation], Windows], conversation: Conversation) -> Windows:
    """Return the windows of a conversation without blocking the event loop: a long one is tokenised on a thread.

    Raises:
        OverlongError, ActivationError: Raised by the tokenizer.
    """
    if sum(len(message.content) for message in conversation.messages) <= _INLINE_CHARACTERS:
        return tokenizer(conversation)
    return await asyncio.to_thread(tokenizer, conversation)


class TextEncoder:
    """Token ids of the operator's text and of users' text.

    Holds private copies of the tokenizer, without truncation and padding. The shared tokenizer is not thread-safe: it
    changes its settings on every call, and a remaining truncation would cut conversations silently.

    Args:
        tokenizer: The model's tokenizer; a fast one.

    Attributes:
        sha256: Hash of the serialised tokenizer.

    Raises:
        ActivationError: It has no fast backend.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ActivationError(
                f"{type(tokenizer).__name__} has no fast backend", hint="Convert the tokenizer to tokenizer.json"
            )
        self._markup = Tokenizer.from_str(backend.to_str())
        self._markup.no_truncation()
        self._markup.no_padding()
        serialised = json.dumps(json.loads(self._markup.to_str()), sort_keys=True)
        self.sha256 = hashlib.sha256(serialised.encode("ascii")).hexdigest()

    @functools.cached_property
    def _text(self) -> Tokenizer:
        # Made when it is first used: a model with a chat template does without it, and a vocabulary takes memory.
        copy = Tokenizer.from_str(self._markup.to_str())
        copy.encode_special_tokens = True
        return copy

    def markup(self, text: str) -> Ids:
        """Encode the operator's text: special tokens in it are special."""
        return tuple(self._markup.encode(text, add_special_tokens=False).ids)

    def text(self, text: str) -> Ids:
        """Encode a user's text: special tokens in it are ordinary characters."""
        return tuple(self._text.encode(text, add_special_tokens=False).ids)

    def special_tokens(self) -> tuple[Ids, Ids]:
        """Return the tokens that the tokenizer itself puts before and behind a text."""
        bare, full = (self._markup.encode("a", add_special_tokens=add).ids for add in (False, True))
        at = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        return tuple(full[:at]), tuple(full[at + len(bare) :])


class ConversationTokenizer:
    """Renders a conversation and cuts it into windows.

    Models with a chat template see the conversation as the template renders it, without a generation prompt; others
    see :meth:`Conversation.plain_text` between the model's own special tokens.

    Args:
        tokenizer: The model's tokenizer; a fast one.
        window: Tokens in one window, special tokens included.
        max_tokens: Largest number of tokens of a conversation, special tokens not counted.

    Attributes:
        window: The argument of the same name.

    Raises:
        ActivationError: The tokenizer has no fast backend, or the window leaves no room for text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, window: int, max_tokens: int) -> None:
        self._encoder = TextEncoder(tokenizer)
        self.tokenizer_sha256 = self._encoder.sha256

        template = tokenizer.get_chat_template() if tokenizer.chat_template else None
        self._tokenizer = tokenizer if template else None
        self._template = _FIXED_CLOCK + template if template else ""
        self.template_sha256 = hashlib.sha256((template or _PLAIN_TEXT_RULE).encode()).hexdigest()
        if template:
            self._encode = self._encoder.markup
            self._prefix = self._window_prefix(tokenizer)
            self._suffix: Ids = ()
        else:
            # Without a template, the text holds no special token of ours. One that a user types stays text.
            self._encode = self._encoder.text
            self._prefix, self._suffix = self._encoder.special_tokens()
        self.window = window
        self._max_tokens = max_tokens
        self._stride = window - len(self._prefix) - len(self._suffix)
        if self._stride < 1:
            raise ActivationError(f"a window of {window} tokens leaves no room for text", hint="Raise base.window")

    def __call__(self, conversation: Conversation) -> Windows:
        """Return the windows of a conversation, at least one.

        Raises:
            OverlongError: There are more tokens than allowed.
            ActivationError: The chat template refuses the conversation.
        """
        text = self._render(conversation)
        if len(text) > self._max_tokens * _CHARACTERS_PER_TOKEN:
            raise self._overlong()
        ids = self._encode(text)
        if len(ids) > self._max_tokens:
            raise self._overlong()
        prefix = self._prefix
        if self._tokenizer is not None:
            # The template writes its own first special token; only later windows need it added.
            ids = ids[len(prefix) :] if ids[: len(prefix)] == prefix else ids
        starts = range(0, max(len(ids), 1), self._stride)
        return tuple((*prefix, *ids[start : start + self._stride], *self._suffix) for start in starts)

    def _render(self, conversation: Conversation) -> str:
        if self._tokenizer is None:
            return conversation.plain_text()
        messages = [{"role": turn.role, "content": turn.content} for turn in conversation.alternating()]
        arguments: dict[str, Any] = {"chat_template": self._template, "date_string": _TEMPLATE_DATE}
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=False, **arguments
            )
        except Exception as error:  # noqa: BLE001  # a template may raise anything
            # The template's own message may quote the conversation, so it is not repeated here.
            raise ActivationError(f"the chat template refused a conversation ({type(error).__name__})") from None
        return cast("str", rendered)

    def _overlong(self) -> OverlongError:
        return OverlongError(
            f"the conversation has more than {self._max_tokens} tokens",
            hint="Raise base.max_tokens and calibrate again, or shorten the input; on_overlong decides about it",
        )

    def _window_prefix(self, tokenizer: PreTrainedTokenizerBase) -> Ids:
        first = self._encode(self._render(Conversation.from_text("a")))[:1]
        # Decoders put much of their attention on the first token. They were not trained on windows without it.
        return first if first == (tokenizer.bos_token_id,) else ()
