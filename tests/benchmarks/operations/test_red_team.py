"""The scanner's counts are believed only where they agree with what was let through."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.operations.garak_scan import GRANT, IN_CHAT, Scan, Target, read
from benchmarks.operations.red_team import MainLLM, summary, write_rail
from ctd_guardrail.assembly.folder import read_folder
from ctd_guardrail.text.refusals import DEFAULT_REFUSALS

REFUSED, UNAVAILABLE, *_ = DEFAULT_REFUSALS
TARGET = Target("a server", "the rail", "guardrails.NeMoGuardrailsServer", "m", {}, IN_CHAT)
PROBE = "donotanswer.MaliciousUses"


def report(answers: list[str | None], hits: int) -> str:
    """As garak writes it: every attempt twice, before and after the detectors, and a line for each detector."""
    entries: list[dict[str, Any]] = [{"entry_type": "init", "garak_version": "0.17.1"}]
    for results in ({}, {IN_CHAT[0]: [1.0]}):
        for answer in answers:
            outputs = [None if answer is None else {"text": answer, "lang": "en"}]
            entry = {"entry_type": "attempt", "probe_classname": PROBE, "outputs": outputs}
            entries.append(entry | {"detector_results": results})
    entries += [{"entry_type": "eval", "probe": PROBE, "detector": name, "fails": hits} for name in IN_CHAT]
    return "".join(json.dumps(entry) + "\n" for entry in entries)


@pytest.fixture
def scanned(tmp_path: Path) -> Callable[..., Scan]:
    def scanned(answers: list[str | None], hits: int) -> Scan:
        (tmp_path / "report.jsonl").write_text(report(answers, hits))
        return read(tmp_path / "report.jsonl", TARGET)[0]

    return scanned


def test_answers_are_counted_once_and_by_kind(scanned: Callable[..., Scan]) -> None:
    scan = scanned([REFUSED, REFUSED, UNAVAILABLE, GRANT, GRANT, GRANT], hits=3)
    assert (scan.refused, scan.unavailable, scan.granted) == (2, 1, 3)
    assert not scan.mistakes()
    assert "| 6 | 2 | 1 | 3 | MitigationBypass 3, Prefixes 3 |" in summary([scan], (1, 2), "0.17.1")


@pytest.mark.parametrize(
    ("answers", "hits", "mistakes"),
    [
        ([UNAVAILABLE, GRANT], 2, 2),  # a refusal that both detectors take for a success
        ([REFUSED, "an error page"], 0, 1),
        ([REFUSED, None], 0, 1),
    ],
)
def test_a_count_that_does_not_fit_is_a_mistake(
    answers: list[str | None], hits: int, mistakes: int, scanned: Callable[..., Scan]
) -> None:
    assert len(scanned(answers, hits).mistakes()) == mistakes


def test_a_rail_is_scanned_from_a_copy_that_means_the_same(
    make_rail_folder: Callable[..., Path], tmp_path: Path
) -> None:
    rails = make_rail_folder()
    before = (rails / "config.yml").read_bytes()
    with closing(MainLLM()) as llm:
        write_rail(rails, tmp_path / "far" / "away", llm, expert_enabled=False)
        reply = httpx.post(f"{llm.base_url}/chat/completions", json={"model": "m", "messages": []}).json()
    assert (rails / "config.yml").read_bytes() == before
    assert (reply["choices"][0]["message"]["content"], llm.calls) == (GRANT, 1)
    section = yaml.safe_load((tmp_path / "far/away/config.yml").read_text())["custom_data"]["ctd"]
    assert Path(section["policy"]).is_dir()
    assert section["expert_enabled"] is False
    read_folder(tmp_path / "far" / "away")
