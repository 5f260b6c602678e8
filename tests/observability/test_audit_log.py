import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretBytes

from ctd_guardrail.decision import Decision, Reason, Route, Verdict
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.observability.audit_log import AuditLog
from ctd_guardrail.observability.events import Decided, Origin

KEY = b"a secret of the operator"
ALLOWED = Decision(Verdict.ALLOW, Route.PROBE, Reason.PROBE_SAFE, p=0.25, d=0.125)
BLOCKED = Decision(Verdict.BLOCK, Route.EXPERT, Reason.EXPERT_UNSAFE, p=0.25, d=0.5, p_expert=0.75)
BYPASSED = Decision(Verdict.ALLOW, Route.EXPERT, Reason.EXPERT_TIMEOUT, p=0.25, d=0.5)


def make(file: Path, **options: Any) -> AuditLog:
    return AuditLog(file, key=SecretBytes(KEY), labels={"guard": "g", "policy": "p"}, **options)


def write(audit: AuditLog, decision: Decision, times: int = 1) -> None:
    for _ in range(times):
        audit(Decided(decision, 1e9, "digest", "request-1"))


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_line_says_what_was_decided_and_names_the_unit_by_a_keyed_hash(tmp_path: Path) -> None:
    write(make(tmp_path / "logs" / "audit.jsonl"), BLOCKED)
    (line,) = lines(tmp_path / "logs" / "audit.jsonl")
    assert line.pop("ms") == {"total": 0.0, "queue": 0.0, "forward": 0.0, "probe": 0.0, "expert": 0.0}
    assert line == {
        "time": "2001-09-09T01:46:40.000+00:00",
        "request": "request-1",
        "unit": hmac.digest(KEY, b"digest", hashlib.sha256).hex()[:32],
        "verdict": "block",
        "route": "expert",
        "reason": "expert_unsafe",
        "mode": "enforce",
        "failed": False,
        "guard": "g",
        "policy": "p",
        "share": 1.0,
    }


def test_blocks_and_failures_are_always_written_and_the_rest_by_its_share(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    audit = make(file, sample=0.1)
    for decision in (ALLOWED, BLOCKED, BYPASSED):
        write(audit, decision, 2000 if decision is ALLOWED else 5)
    written = lines(file)
    by_reason = {reason: sum(line["reason"] == reason for line in written) for reason in Reason}
    assert by_reason["expert_unsafe"] == by_reason["expert_timeout"] == 5
    # Beyond five standard deviations of Binomial(2000, .1).
    assert 130 < by_reason["probe_safe"] < 270
    assert {line["share"] for line in written if line["reason"] == "probe_safe"} == {0.1}
    assert audit.written == len(written)


def test_a_self_test_is_not_written(tmp_path: Path) -> None:
    audit = make(tmp_path / "audit.jsonl", sample=1.0)
    for origin in Origin:
        audit(Decided(BLOCKED, 1e9, origin=origin))
    assert audit.written == len(Origin) - 1


@pytest.mark.parametrize("sample", [0.0, 1.0])
def test_none_and_all_are_shares_too(tmp_path: Path, sample: float) -> None:
    write(audit := make(tmp_path / "audit.jsonl", sample=sample), ALLOWED, 50)
    assert audit.written == 50 * sample


def test_scores_are_written_only_where_they_are_asked_for(tmp_path: Path) -> None:
    write(make(tmp_path / "without"), BLOCKED)
    write(make(tmp_path / "with", scores=True), BLOCKED)
    assert not {"0.25", "0.5", "0.75"} & set((tmp_path / "without").read_text().replace(",", " ").split())
    assert lines(tmp_path / "with")[0]["scores"] == {"p": 0.25, "d": 0.5, "p_expert": 0.75}


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be moved there")
def test_a_file_that_the_host_has_moved_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    audit = make(file)
    write(audit, BLOCKED, 2)
    file.rename(tmp_path / "audit.jsonl.1")
    write(audit, BLOCKED, 3)
    assert (len(lines(tmp_path / "audit.jsonl.1")), len(lines(file))) == (2, 3)


def test_a_file_that_cannot_be_opened_refuses_to_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"audit_log\.path"):
        make(tmp_path / "file" / "audit.jsonl")


def test_lines_that_cannot_be_written_are_counted_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "logs"
    audit = make(folder / "audit.jsonl")
    (folder / "audit.jsonl").unlink()
    folder.rmdir()
    write(audit, BLOCKED, 3)
    assert (audit.written, audit.lost) == (0, 3)
    assert len(caplog.records) == 1
