import numpy as np

from calibrate.train.targets import expert_targets, label_target, share_target

LABELS = np.array([1.0, 1.0, 0.0, 0.0])
EXPERT = np.array([0.8, 0.6, 0.6, 0.1])


def test_the_heads_learn_the_experts_score_on_the_rows_of_each_label() -> None:
    targets = expert_targets(LABELS, EXPERT)
    assert list(targets) == ["e1", "e0"]
    assert targets["e1"].rows.tolist() == [0, 1]
    assert targets["e0"].rows.tolist() == [2, 3]
    assert all(target.loss == "squared" for target in targets.values())
    np.testing.assert_array_equal(targets["e0"].values, EXPERT)


def test_labels_are_learnt_as_a_logit_or_as_a_share() -> None:
    assert (label_target(LABELS).loss, share_target(LABELS).loss) == ("logistic", "squared")
    for target in (label_target(LABELS), share_target(LABELS)):
        np.testing.assert_array_equal(target.values, LABELS)
        assert target.rows.tolist() == [0, 1, 2, 3]
