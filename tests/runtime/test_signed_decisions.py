"""Entries of decisions on a server."""

from typing import Any

import pytest
from pydantic import SecretBytes

from ctd_guardrail.decision import Decision, Reason, Route, Verdict
from ctd_guardrail.runtime.signed_decisions import SignedDecisions

SIGNED = SignedDecisions(SecretBytes(b"a secret of the replicas"))


@pytest.mark.parametrize("changes", [{"reason": "probe_very_unsafe"}, {"route": "committee"}, {"verdict": None}])
def test_an_entry_of_another_version_is_not_remembered(changes: dict[str, Any]) -> None:
    """Its signature is right: a replica with another version wrote it."""
    fields: dict[str, Any] = {"verdict": Verdict.ALLOW, "route": Route.PROBE, "reason": Reason.PROBE_SAFE}
    assert SIGNED.read("name", SIGNED.write("name", Decision(**fields))) == Decision(**fields)
    assert SIGNED.read("name", SIGNED.write("name", Decision(**fields | changes))) is None
