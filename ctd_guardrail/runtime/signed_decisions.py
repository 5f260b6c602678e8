"""Decisions as entries of a store that others may write to.

An entry holds no text: its name is a keyed hash, and its value has the verdict and the scores. The signature covers
name and value. An entry that was written without the key, changed, or copied to another name is therefore no decision.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Final

from pydantic import SecretBytes

from ctd_guardrail.decision import Decision, Mode, Reason, Route, Verdict

__all__ = ["SignedDecisions"]

_BYTES: Final = 16


class SignedDecisions:
    """Names, writes and reads entries.

    Args:
        key: Secret of 16 to 64 bytes.

    Attributes:
        turn_key: Secret for the hashes of conversations.
    """

    def __init__(self, key: SecretBytes) -> None:
        secret = key.get_secret_value()
        self._name_key, self._signing_key, self.turn_key = (
            hashlib.blake2b(use, key=secret, digest_size=32).digest() for use in (b"name", b"signature", b"turn")
        )

    def name(self, judgement_key: str, unit: str) -> str:
        """Return the name of the entry of a unit, in hexadecimal.

        Args:
            judgement_key: Hash of everything that decisions depend on beside the unit.
            unit: Digest of the unit.
        """
        return hashlib.blake2b(f"{judgement_key}\n{unit}".encode(), key=self._name_key, digest_size=_BYTES).hexdigest()

    def answer_name(self, answer: str) -> str:
        """Return the name of the entry of an answer, in hexadecimal.

        Args:
            answer: Digest of the answer.
        """
        return self.name("answer of the main LLM", answer)

    def write_answer(self, name: str) -> bytes:
        """Return the entry of an answer: the signature of its name."""
        return self._sign(name, b"")

    def is_answer(self, name: str, entry: bytes) -> bool:
        """Return whether an entry of an answer is signed with this key under this name."""
        return hmac.compare_digest(entry, self.write_answer(name))

    def write(self, name: str, decision: Decision) -> bytes:
        """Return the entry of a decision: only what a later request needs.

        Args:
            name: Name of the entry.
            decision: The decision.
        """
        scores = (decision.p, decision.d, decision.p_expert)
        fields = (decision.verdict, decision.route, decision.reason, decision.mode, *scores)
        value = json.dumps(fields, separators=(",", ":")).encode("ascii")
        return self._sign(name, value) + value

    def read(self, name: str, entry: bytes) -> Decision | None:
        """Return the decision of an entry, or None if it is not signed with this key under this name.

        An entry of another version that this one cannot read is None as well.

        Args:
            name: Name of the entry.
            entry: What :meth:`write` returned, or what someone else has written.
        """
        signature, value = entry[:_BYTES], entry[_BYTES:]
        if not hmac.compare_digest(signature, self._sign(name, value)):
            return None
        try:
            verdict, route, reason, mode, p, d, p_expert = json.loads(value)
            return Decision(Verdict(verdict), Route(route), Reason(reason), p, d, p_expert, Mode(mode))
        except (ValueError, TypeError):
            return None  # of a replica with another version

    def _sign(self, name: str, value: bytes) -> bytes:
        return hashlib.blake2b(f"{name}\n".encode() + value, key=self._signing_key, digest_size=_BYTES).digest()
