import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.evaluate.rows import ScoredRows
from calibrate.report.card import write_card
from calibrate.report.explorer import Explorer
from calibrate.report.page import explore_policy
from ctd_guardrail.policy.manifest import PerformanceRecord, RiskBound
from ctd_guardrail.policy.store import Policy


@pytest.fixture
def card(policy: Policy, tested: ScoredRows, explorer: Explorer, tmp_path: Path) -> str:
    return write_card(tmp_path, policy, tested, explorer).read_text(encoding="utf-8")


def test_it_says_what_a_card_has_to_say(card: str, policy: Policy, explorer: Explorer) -> None:
    for heading in ("Intended use", "Data", "Figures", "Limits", "Not defended"):
        assert f"## {heading}\n" in card
    start = explorer.at_start()
    assert policy.manifest.data[0].sha256 in card
    assert "layers 1, residual, float32" in card
    assert f"{start['ctd_accuracy']} {start['ctd_accuracy_se']}" in card
    assert f"on the same rows: {start['gain']} points" in card
    assert "recorded with the data" in card


def test_every_table_is_whole(card: str) -> None:
    for table in re.findall(r"(?:^\|.*\|$\n)+", card, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    assert card.count("\n|---") == 5


def test_names_from_data_are_no_markup(card: str) -> None:
    assert not re.search(r"<script|<img|<i>|\*\*bold|\[link\]|`x`|\{\{", card)
    assert "&#60;script&#62;document.title" in card
    assert "&#124; y&#10;z" in card


def test_names_of_common_characters_stay_as_they_are(policy: Policy, tested: ScoredRows, tmp_path: Path) -> None:
    rows = replace(tested, group=["mts_dialog-2.1"] * tested.label.size)
    card = write_card(tmp_path, policy, rows, explore_policy(policy, rows)).read_text(encoding="utf-8")
    assert f"| mts_dialog-2.1 | 300 | {100 * tested.label.mean():.1f}% |" in card


def test_risks_that_were_certified_are_named(
    make_policy: Callable[..., Policy], tested: ScoredRows, explorer: Explorer, tmp_path: Path
) -> None:
    record = PerformanceRecord(risks=(RiskBound(metric="fnr", max=0.2),), threshold=0.3)
    card = write_card(tmp_path, make_policy(performance=record), tested, explorer).read_text(encoding="utf-8")
    assert "| certified with it | fnr at most 0.2; lambda 0.3, abstain band 0.0 |" in card
