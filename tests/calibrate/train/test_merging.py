import numpy as np
import pytest
from scipy.special import expit

from calibrate.train.merging import compare_merges, fit_expert_scale, fit_merge, fit_probe_scale
from ctd_guardrail.probes.merge import log_odds


def judges(seed: int = 0, rows: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and two calibrated judges that see different halves of the evidence."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(scale=2.0, size=(2, rows))
    labels = (rng.random(rows) < expit(first + second)).astype(float)
    return labels, expit(0.6 * first), expit(0.6 * second)


def brier(labels: np.ndarray, score: np.ndarray) -> float:
    return float(np.square(labels - score).mean())


def test_an_overconfident_expert_is_brought_back_and_a_reversed_one_left_alone() -> None:
    labels, _, expert = judges()
    loud = expit(4.0 * log_odds(expert) + 1.0)
    scale = fit_expert_scale(labels, loud)
    assert scale is not None
    merge = fit_merge("replace", labels, expert, loud, scale)
    assert brier(labels, merge(expert, loud)) == pytest.approx(brier(labels, expert), abs=0.003)
    assert brier(labels, loud) > brier(labels, expert) + 0.02
    assert fit_probe_scale(labels, -log_odds(expert)) is None


def test_each_merge_learns_what_both_judges_know() -> None:
    labels, p, expert = judges()
    fresh, fresh_p, fresh_expert = judges(seed=1)
    merges = {kind: fit_merge(kind, labels, p, expert, None) for kind in ("replace", "average", "stacking")}
    assert (merges["replace"](p, expert) == expert).all()
    assert merges["average"].weight == pytest.approx(0.5, abs=0.02)
    assert merges["stacking"].probe == pytest.approx(merges["stacking"].expert, rel=0.1)
    scores = {kind: brier(fresh, merge(fresh_p, fresh_expert)) for kind, merge in merges.items()}
    assert scores["stacking"] < scores["average"] < scores["replace"] - 0.01


def test_the_average_gives_a_useless_expert_no_weight() -> None:
    labels, p, _ = judges()
    useless = np.random.default_rng(9).random(labels.size)
    assert fit_merge("average", labels, p, useless, None).weight < 0.1
    assert fit_merge("average", labels, p, p, None).weight == 0.0


def test_all_merges_are_compared_on_the_same_delegated_rows() -> None:
    labels, p, expert = judges(rows=2000)
    found = compare_merges(labels, p, -np.abs(p - 0.5), expert, None)
    assert [each["kind"] for each in found] == ["replace", "average", "stacking"]
    assert found[2]["brier"] < found[0]["brier"]
