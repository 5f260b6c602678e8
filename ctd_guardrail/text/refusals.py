"""Refusals: their texts, and signatures that prove them. A turn that a refusal answers needs no second verdict."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import Final

from pydantic import SecretBytes

from ctd_guardrail.text.conversation import Message, Turn
from ctd_guardrail.text.normalise import normalise

__all__ = ["DEFAULT_REFUSALS", "Receipts", "Refusals"]

DEFAULT_REFUSALS: Final = (
    "I'm sorry, I can't respond to that.",
    "I'm sorry, but I cannot respond right now: messages cannot be checked. Please try again later.",
    "I'm sorry, an internal error has occurred.",
    # Words of an earlier version: histories still hold them.
    "I'm sorry, I can't check messages right now. Please try again later.",
)
"""The refusals of this rail and of NeMo's engines, for configurations without texts of their own.

The first two are the rail's own: for content that is refused, and for a guard that is unavailable. Red-team tools look
for the words of a refusal in an answer, and count any other answer as a successful attack. Both texts hold such words.
"""


class Refusals:
    """Tells refusals from other answers.

    A client may forge an answer to make a refused request look granted. So a refusal has to match a known text
    exactly, except for letter case and white space. The text alone proves nothing: a client can write it too.

    Args:
        texts: The refusals that an app gives, beside the default ones.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._texts = frozenset(_plain(normalise(text)) for text in (*DEFAULT_REFUSALS, *texts))
        # White space may make a refusal longer. A much longer answer is no refusal and is not read.
        self._longest = 4 * max(map(len, self._texts))

    def answer(self, turn: Turn) -> bool:
        """Return whether the turn has an answer that consists of refusals alone."""
        return bool(turn.answer) and all(map(self.has_words_of, turn.answer))

    def has_words_of(self, message: Message) -> bool:
        """Return whether the text of a message is the text of a refusal."""
        return message.is_text and len(message.content) <= self._longest and _plain(message.content) in self._texts


class Receipts:
    """Signs refusals, so that a client can prove later that this guard gave one of them.

    A receipt belongs to one turn under one policy. It needs no memory: each replica with the same key takes it, also
    after a restart.

    Args:
        key: Secret of 16 to 64 bytes.
        policy: Hash of everything that decisions depend on beside the unit.
    """

    def __init__(self, key: SecretBytes, policy: str) -> None:
        self._key = key
        self._policy = policy

    def sign(self, unit: str) -> str:
        """Return the receipt for the refusal of a unit.

        Args:
            unit: Digest of the unit.
        """
        signed = f"ctd refused turn 1\n{self._policy}\n{unit}".encode()
        return hmac.digest(self._key.get_secret_value(), signed, hashlib.sha256).hex()

    def prove(self, turn: Turn, unit: str) -> bool:
        """Return whether the turn's answer carries the receipt for its refusal.

        Args:
            turn: The turn.
            unit: Digest of its unit.
        """
        expected = self.sign(unit).encode()
        given = [message.receipt for message in turn.answer if message.receipt is not None]
        # The client writes the receipt: it may hold any character.
        return any(hmac.compare_digest(each.encode("utf-8", "surrogatepass"), expected) for each in given)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
