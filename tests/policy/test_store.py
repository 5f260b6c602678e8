import contextlib
import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctd_guardrail.activations.spec import ActivationSpec, Fingerprint
from ctd_guardrail.errors import PolicyError, PolicyFormatError, PolicyIntegrityError, PolicyMismatchError
from ctd_guardrail.policy.match import check_expert, check_fingerprint
from ctd_guardrail.policy.store import CalibrationScores, Policy, read_policy, write_policy
from tests.support.artefacts import edit, retensor

N = 50
PROBE = {"bias": np.ones(4, np.float32), "0.weight": np.ones((4, 3), np.float32)}


def fingerprint(**changes: Any) -> Fingerprint:
    fields = {
        "architecture": "BertModel",
        "hidden_size": 3,
        "window": 128,
        "weights_sha256": "a" * 64,
        "tokenizer_sha256": "b" * 64,
        "template_sha256": "c" * 64,
    }
    return Fingerprint.model_validate(fields | changes)


def manifest(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "created_at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        "versions": {},
        "activations": ActivationSpec(model="m", layers=(1,), site="residual"),
        "fingerprint": fingerprint(),
        "expert": "judge-1",
        "calibration": {"rows": N, "alpha": 0.1, "delta": 0.1, "seed": 0},
        "data": [],
        "training": {},
        "evaluation": {},
    }
    return fields | changes


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return write(tmp_path)


def write(folder: Path) -> Policy:
    rng = np.random.default_rng(0)
    scores = CalibrationScores.from_rows(
        d=rng.normal(size=N), p=rng.uniform(size=N), expert=rng.uniform(size=N), label=np.repeat([0.0, 1.0], N // 2)
    )
    return write_policy(folder, manifest(), PROBE, scores)


def test_what_is_read_is_what_was_written(policy: Policy, tmp_path: Path) -> None:
    again = read_policy(tmp_path)
    assert again.manifest == policy.manifest
    assert np.array_equal(again.probe["0.weight"], policy.probe["0.weight"])
    for column in ("d", "p", "expert", "label"):
        assert np.array_equal(getattr(again.calibration, column), getattr(policy.calibration, column))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.json", "policy.lock", "policy.safetensors"]


def test_arrays_in_any_memory_layout_come_back_as_they_were(tmp_path: Path) -> None:
    probe = {"0.weight": np.arange(12, dtype=np.float32).reshape(3, 4).T, "bias": np.arange(8, dtype=np.float32)[::2]}
    write_policy(tmp_path, manifest(), probe, CalibrationScores(np.arange(2.0 * N)[::2], np.zeros(N)))
    again = read_policy(tmp_path)
    assert all(np.array_equal(again.probe[name], probe[name]) for name in probe)


def test_digests_of_used_rows_come_back(tmp_path: Path, policy: Policy) -> None:
    assert read_policy(tmp_path).used_rows is None
    digests = np.array([1, 2**63, 2**64 - 1], dtype=np.uint64)
    write_policy(tmp_path, manifest(), policy.probe, policy.calibration, used_rows=digests)
    again = read_policy(tmp_path).used_rows
    assert again is not None
    assert again.tolist() == digests.tolist()
    write_policy(tmp_path, manifest(), policy.probe, policy.calibration, used_rows=np.ones(3))  # type: ignore[arg-type]
    with pytest.raises(PolicyFormatError, match="used_rows are not 64-bit digests"):
        read_policy(tmp_path)


@pytest.mark.parametrize("steps", range(4))
def test_a_writer_that_is_killed_leaves_the_old_policy_or_the_new_one(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    newer = {name: 2 * array for name, array in PROBE.items()}
    replace, left = Path.replace, iter(range(steps))

    def until_killed(path: Path, target: Path) -> Path:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", until_killed)
    with pytest.raises(KeyboardInterrupt) if steps < 3 else contextlib.nullcontext():
        write_policy(tmp_path, manifest(), newer, policy.calibration)
    monkeypatch.undo()
    expected = PROBE if steps < 2 else newer
    np.testing.assert_array_equal(read_policy(tmp_path).probe["0.weight"], expected["0.weight"])
    # The next writer finds all that it needs, and is killed itself.
    left = iter(range(1))
    monkeypatch.setattr(Path, "replace", until_killed)
    with pytest.raises(KeyboardInterrupt):
        write_policy(tmp_path, manifest(), PROBE, policy.calibration)
    monkeypatch.undo()
    np.testing.assert_array_equal(read_policy(tmp_path).probe["0.weight"], expected["0.weight"])
    write_policy(tmp_path, manifest(), PROBE, policy.calibration)
    np.testing.assert_array_equal(read_policy(tmp_path).probe["0.weight"], PROBE["0.weight"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.json", "policy.lock", "policy.safetensors"]


def test_rows_are_sorted_together() -> None:
    scores = CalibrationScores.from_rows(d=np.array([3.0, 1.0, 2.0]), p=np.array([0.3, 0.1, 0.2]))
    assert scores.d.tolist() == [1, 2, 3]
    assert scores.p.tolist() == [0.1, 0.2, 0.3]


def test_a_row_that_the_expert_refused_has_a_d_and_no_score(tmp_path: Path) -> None:
    expert = np.array([0.5, np.nan, 0.25, *np.zeros(N - 3)])
    d = np.array([3.0, 2.0, 1.0, *np.linspace(-1, 0, N - 3)])
    scores = CalibrationScores.from_rows(d=d, p=np.full(N, 0.5), expert=expert, label=np.ones(N))
    write_policy(tmp_path, manifest(), PROBE, scores)
    policy = read_policy(tmp_path)
    assert policy.scores.turns == policy.calibration.d.size == N
    scored = policy.calibration.scored
    assert scored.expert is not None
    assert scored.label is not None
    assert scored.d.tolist() == sorted(value for value in d.tolist() if value != 2.0)
    assert (scored.expert[-1], scored.expert[-2]) == (0.5, 0.25)
    assert scored.p.size == scored.expert.size == scored.label.size == N - 1


MALFORMED = {
    "no folder": lambda f: [path.unlink() for path in f.iterdir()],
    "no tensors": lambda f: (f / "policy.safetensors").unlink(),
    "manifest is not JSON": lambda f: (f / "policy.json").write_text("{"),
    "manifest is a list": lambda f: (f / "policy.json").write_text("[]"),
    "unknown field": lambda f: edit(f, surprise=1),
    "later format": lambda f: edit(f, format=2),
    "unknown probe": lambda f: edit(f, probe="pickle"),
    "unknown kind of probe": lambda f: edit(f, probe={"delegation": "pickle"}),
    "probes of other tensors": lambda f: edit(f, probe={"features": ["length"]}),
    "a probe tensor is missing": lambda f: retensor(f, probe__bias=None),
    "a probe tensor too many": lambda f: retensor(f, probe__surplus=np.zeros(1, np.float32)),
    "a probe tensor of float64": lambda f: retensor(f, probe__bias=np.zeros(4)),
    "a merge that is none": lambda f: edit(f, merge={"kind": "average", "weight": 2}),
    "threshold out of range": lambda f: edit(f, decision_threshold=1.5),
    "NaN in JSON": lambda f: edit(f, training={"loss": float("nan")}),
    "not UTF-8": lambda f: (f / "policy.json").write_bytes((f / "policy.json").read_text().encode("utf-16")),
    "foreign tensor": lambda f: retensor(f, other__thing=np.zeros(1)),
    "infinite score": lambda f: retensor(f, calibration__p=np.full(N, np.inf)),
    "infinite score of the expert": lambda f: retensor(f, calibration__expert=np.full(N, np.inf)),
    "no number for d": lambda f: retensor(f, calibration__d=np.append(np.arange(N - 1.0), np.nan)),
    "no number for p": lambda f: retensor(f, calibration__p=np.append(np.zeros(N - 1), np.nan)),
    "no number for a label": lambda f: retensor(f, calibration__label=np.append(np.zeros(N - 1), np.nan)),
    "wrong number of rows": lambda f: retensor(f, calibration__d=np.arange(N - 1.0)),
    "wrong shape": lambda f: retensor(f, calibration__d=np.zeros((N, 1))),
    "scores out of order": lambda f: retensor(f, calibration__d=np.arange(N, 0.0, -1)),
    "no scores": lambda f: retensor(f, calibration__d=None),
    "unknown column": lambda f: retensor(f, calibration__q=np.zeros(N)),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.usefixtures("policy")
def test_malformed_folders_are_refused(name: str, tmp_path: Path) -> None:
    MALFORMED[name](tmp_path)
    with pytest.raises(PolicyError) as error:
        read_policy(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.usefixtures("policy")
def test_a_changed_tensor_file_is_an_integrity_error(tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_policy(
        other,
        manifest(),
        {name: 0 * array for name, array in PROBE.items()},
        CalibrationScores(np.arange(N / 1), np.zeros(N)),
    )
    (tmp_path / "policy.safetensors").write_bytes((other / "policy.safetensors").read_bytes())
    with pytest.raises(PolicyIntegrityError):
        read_policy(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture", "LlamaModel"),
        ("hidden_size", 4),
        ("window", 64),
        ("weights_sha256", "d" * 64),
        ("tokenizer_sha256", "d" * 64),
        ("template_sha256", "d" * 64),
    ],
)
def test_another_base_model_is_refused_by_name_of_what_differs(policy: Policy, field: str, value: Any) -> None:
    check_fingerprint(policy.manifest, fingerprint())
    with pytest.raises(PolicyMismatchError, match=field):
        check_fingerprint(policy.manifest, fingerprint(**{field: value}))


def test_another_expert_is_refused_unless_scores_were_recorded(policy: Policy) -> None:
    check_expert(policy.manifest, "judge-1")
    with pytest.raises(PolicyMismatchError, match="judge-2"):
        check_expert(policy.manifest, "judge-2")
    recorded = policy.manifest.model_copy(update={"expert": "recorded:expert_strong"})
    check_expert(recorded, "judge-2")
