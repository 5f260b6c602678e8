"""Risks beside the budget: from CALIBRATE.yml to a policy that the rail runs at the certified setting."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from calibrate.config.file import CalibrateConfig, load_config
from calibrate.pipeline.run import run
from calibrate.report.card import CARD_FILE
from calibrate.report.documents import write_documents
from calibrate.report.summary import print_summary
from ctd_guardrail.assembly.prepared import prepare
from ctd_guardrail.config.section import parse_section
from ctd_guardrail.errors import ConfigError, DataError, InfeasibleBudgetError
from ctd_guardrail.policy.store import Policy

Make = Callable[..., Any]


def configured(make_rows: Make, write_rows: Make, write_config: Make, **budget: Any) -> CalibrateConfig:
    write_rows(make_rows(900))
    splits = {"train": 0.4, "calibration": 0.4, "test": 0.2}
    return load_config(write_config(budget={"alpha": 0.3, "delta": 0.2, **budget}, splits=splits))


def calibrated(make_rows: Make, write_rows: Make, write_config: Make, **budget: Any) -> Policy:
    config = configured(make_rows, write_rows, write_config, **budget)
    return run(config, console=Console(quiet=True)).policy


def test_a_certified_setting_reaches_the_rail(
    make_rows: Make, write_rows: Make, write_config: Make, tmp_path: Path
) -> None:
    risk = [{"metric": "error", "max": 0.4}, {"metric": "fnr", "max": 0.6}]
    policy = calibrated(make_rows, write_rows, write_config, risk=risk, taus=[0.4, 0.5], bands=[0.0, 0.05])
    performance = policy.manifest.performance
    assert performance is not None
    assert [bound.metric for bound in performance.risks] == ["error", "fnr"]
    assert policy.manifest.decision_threshold in (0.4, 0.5)
    section = parse_section({"policy": "policy", "expert": {"type": "local", "model": "m"}})
    planned = prepare(section, folder=tmp_path).plan
    assert planned.rule.threshold == (float("inf") if performance.threshold is None else performance.threshold)
    assert planned.expected_rate <= 0.3


def test_risks_of_the_inputs_that_are_not_delegated_reach_policy_summary_and_report(
    make_rows: Make, write_rows: Make, write_config: Make
) -> None:
    risk = [{"metric": "probe_error", "max": 0.45}, {"metric": "probe_false_omission", "max": 0.6}]
    config = configured(make_rows, write_rows, write_config, risk=risk)
    result = run(config, console=Console(quiet=True))
    performance = result.policy.manifest.performance
    assert performance is not None
    assert [bound.metric for bound in performance.risks] == ["probe_error", "probe_false_omission"]
    with (console := Console(width=200)).capture() as capture:
        print_summary(result, console, report=config.output)
    assert "probe_error at most 0.45, probe_false_omission at most 0.6" in capture.get()
    page = write_documents(result, config)
    for document in (page, page.parent / CARD_FILE):
        assert "probe_false_omission at most 0.6" in document.read_text(encoding="utf-8")


def test_without_a_risk_alpha_is_left_to_the_rail(make_rows: Make, write_rows: Make, write_config: Make) -> None:
    assert calibrated(make_rows, write_rows, write_config).manifest.performance is None


def test_an_impossible_risk_is_named_with_what_would_be_feasible(
    make_rows: Make, write_rows: Make, write_config: Make, tmp_path: Path
) -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"fnr of at most 0\.001.*would have met: ") as error:
        calibrated(make_rows, write_rows, write_config, risk={"metric": "fnr", "max": 0.001})
    assert "fnr of at most 0." in error.value.hint
    assert not (tmp_path / "policy" / "policy.json").exists()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"bands": [0.1]}, "need a risk, but `risk` is missing"),
        ({"taus": [0.4, 0.5]}, "need a risk, but `risk` is missing"),
        ({"method": "structured"}, "method"),
        ({"risk": {"metric": "fpr", "max": 0}}, "max"),
        ({"risk": {"metric": "recall", "max": 0.1}}, "metric"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    make_rows: Make, write_rows: Make, write_config: Make, budget: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        calibrated(make_rows, write_rows, write_config, **budget)


def few_labels(make_rows: Make, *, share: float) -> list[dict[str, Any]]:
    """Rows of which a coin labels some of the calibration part. The expert is asked about all."""
    rng = np.random.default_rng(0)
    rows = make_rows(1200)
    for place, row in enumerate(rows):
        row["split"] = "calibration" if place >= 500 else "train" if place >= 150 else "test"
        if row["split"] == "calibration" and rng.random() >= share:
            row["label"] = None
    return rows


def test_risks_are_certified_from_the_labels_that_a_coin_gave(
    make_rows: Make, write_rows: Make, write_config: Make
) -> None:
    write_rows(few_labels(make_rows, share=0.3))
    budget = {"alpha": 0.3, "delta": 0.2, "risk": [{"metric": "error", "max": 0.45}, {"metric": "fnr", "max": 0.65}]}
    config = load_config(write_config(budget=budget, splits={"label_share": 0.3}))
    result = run(config, console=Console(quiet=True))
    assert result.policy.manifest.performance is not None
    assert result.few_labels is not None
    labelled, rows = result.few_labels
    assert rows == result.certificate.n == 700
    assert 170 < labelled < 250
    with (console := Console(width=200)).capture() as capture:
        print_summary(result, console, report=config.output)
    assert f"{labelled} labels of 700 calibration rows" in capture.get()
    # The tensors hold the scores behind the budget. Some labels are no labelled calibration.
    assert result.policy.calibration.label is None


@pytest.mark.parametrize(
    ("stated", "given", "message"),
    [(0.9, 0.3, "no draw of a coin with splits.label_share = 0.9"), (0.1, 0.3, "no draw of a coin")],
)
def test_labels_that_no_such_coin_gives_are_refused(
    make_rows: Make, write_rows: Make, write_config: Make, stated: float, given: float, message: str
) -> None:
    write_rows(few_labels(make_rows, share=given))
    budget = {"alpha": 0.3, "delta": 0.2, "risk": {"metric": "error", "max": 0.45}}
    config = load_config(write_config(budget=budget, splits={"label_share": stated}))
    with pytest.raises(DataError, match=message):
        run(config, console=Console(quiet=True))


def test_a_share_of_labels_without_a_risk_is_refused(write_config: Make) -> None:
    with pytest.raises(ConfigError, match="the budget alone needs no labels"):
        load_config(write_config(splits={"label_share": 0.3}))
