import base64
import hashlib
import html
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from calibrate.evaluate.rows import ScoredRows
from calibrate.report.explorer import Explorer
from calibrate.report.page import write_report
from ctd_guardrail.policy.budget import certify
from ctd_guardrail.policy.manifest import PerformanceRecord, RiskBound
from ctd_guardrail.policy.store import Policy


def test_the_policy_of_the_page_allows_its_own_style_and_script_and_nothing_else(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    directives = dict(item.split(maxsplit=1) for item in html.unescape(policy[1]).split("; "))
    assert directives["default-src"] == "'none'"
    assert directives["img-src"] == "data:"
    for name, pattern in (("style-src", r"<style>(.*?)</style>"), ("script-src", r"<script>(.*?)</script>")):
        blocks = re.findall(pattern, page, flags=re.DOTALL)
        assert len(blocks) == 1
        digest = base64.b64encode(hashlib.sha256(blocks[0].encode()).digest()).decode()
        assert directives[name] == f"'sha256-{digest}'"


def test_the_page_names_no_other_file(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg|127\.0\.0\.1:8000/v1)", page)


def test_everything_from_data_is_escaped(report: Path, explorer: Explorer) -> None:
    page = report.read_text(encoding="utf-8")
    assert "<i>rows<b>" not in page
    assert "<b>EUR</b>" not in page
    for group in explorer.groups:
        assert (
            f'<th scope="row">{html.escape(group).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")}</th>' in page
        )


def test_training_data_and_versions_are_shown(report: Path, policy: Policy) -> None:
    page = report.read_text(encoding="utf-8")
    assert policy.manifest.data[0].sha256 in page
    assert "safety, alternatives" in page
    assert '<tr class="chosen"><th scope="row">0.1</th>' in page
    assert policy.manifest.expert in page


def test_without_prices_there_are_no_costs(policy: Policy, tested: ScoredRows, tmp_path: Path) -> None:
    page = write_report(tmp_path, policy, tested).read_text(encoding="utf-8")
    assert "Cost" not in page.split('<script type="application/json"')[0].split('<section aria-labelledby="limits')[0]


def test_plots_are_pictures_that_the_page_carries(policy: Policy, tested: ScoredRows, tmp_path: Path) -> None:
    plot: Any = SimpleNamespace(title="A <title>", alt="In <words>", svg="<svg xmlns='http://www.w3.org/2000/svg'/>")
    page = write_report(tmp_path, policy, tested, plots=[plot]).read_text(encoding="utf-8")
    encoded = base64.b64encode(plot.svg.encode()).decode()
    assert f'<img src="data:image/svg+xml;base64,{encoded}" alt="In &lt;words&gt;">' in page
    assert "<figcaption>A &lt;title&gt;</figcaption>" in page


def test_a_policy_that_holds_risks_says_that_alpha_is_not_free(
    make_policy: Callable[..., Policy], tested: ScoredRows, tmp_path: Path
) -> None:
    record = PerformanceRecord(risks=(RiskBound(metric="fnr", max=0.2),), threshold=0.3)
    policy = make_policy(performance=record)
    page = write_report(tmp_path, policy, tested).read_text(encoding="utf-8")
    assert "certified for more than its budget (fnr at most 0.2)" in page
    assert 'data-field="alpha_yaml"' not in page


def test_rows_without_groups_have_no_table_of_groups(policy: Policy, tested: ScoredRows, tmp_path: Path) -> None:
    page = write_report(tmp_path, policy, replace(tested, group=None)).read_text(encoding="utf-8")
    assert "groups-title" not in page


def test_merges_are_compared_on_the_same_delegated_rows(
    policy: Policy, tested: ScoredRows, explorer: Explorer, report: Path
) -> None:
    page = report.read_text(encoding="utf-8")
    found = re.findall(
        r'<th scope="row">(this policy|replace|average|stacking)</th><td>([^<]*)</td><td>([^<]*)</td>', page
    )
    merges = {name: (accuracy, auroc) for name, accuracy, auroc in found}
    assert set(merges) == {"this policy", "replace", "average", "stacking"}
    start = explorer.at_start()
    assert merges["this policy"][0] == f"{start['ctd_accuracy']} {start['ctd_accuracy_se']}"
    assert merges["this policy"] == merges["replace"]
    delegated = tested.d > certify(policy.calibration.d, 0.2, 0.1).threshold
    average = np.where(delegated, (tested.p + tested.expert) / 2, tested.p)
    assert merges["average"][1].startswith(f"{roc_auc_score(tested.label, average):.3f} ")
