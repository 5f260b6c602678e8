"""A calibration on conversations: the policy certifies the turns that the rail judges, in the rail's own way."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from calibrate.cli.app import app
from calibrate.config.file import load_config
from calibrate.pipeline.run import PipelineResult, run
from calibrate.report.documents import write_documents
from calibrate.report.summary import print_summary, to_json
from ctd_guardrail.activations.base_model import load_base_model
from ctd_guardrail.errors import ConfigError, DataError, InfeasibleBudgetError
from ctd_guardrail.policy.budget import Method, certify
from ctd_guardrail.policy.plan import Budget, plan
from ctd_guardrail.policy.selection import Criterion
from ctd_guardrail.policy.store import read_policy
from ctd_guardrail.policy.unreadable import Unreadable
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.windows import over_windows
from ctd_guardrail.text.conversation import Context, Conversation

Row = dict[str, Any]
Make = Callable[..., list[Row]]
Write = Callable[..., Path]

_IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.fixture
def make_chats(make_rows: Make) -> Make:
    """Conversations of one to four turns; label and expert score are those of the last one."""

    def make(count: int = 300) -> list[Row]:
        texts = make_rows(4 * count, seed=3)
        lengths = np.random.default_rng(0).integers(1, 5, count).tolist()
        chats = []
        for number, length in enumerate(lengths):
            turns = texts[4 * number : 4 * number + length]
            messages = [message for turn in turns for message in (_user(turn["text"]), _answer)][:-1]
            chats.append({"messages": messages, "label": turns[-1]["label"], "expert": turns[-1]["expert"]})
        return chats

    return make


_answer = {"role": "assistant", "content": "fine"}


def _user(content: Any) -> Row:
    return {"role": "user", "content": content}


def _run(config: Path) -> PipelineResult:
    return run(load_config(config), console=Console(quiet=True))


def _summary(result: PipelineResult) -> str:
    text = io.StringIO()
    print_summary(result, Console(width=400, file=text), report=Path("report.html"))
    return text.getvalue()


@pytest.mark.parametrize("context", Context)
async def test_the_certificate_covers_every_turn_as_the_rail_scores_it(
    make_chats: Make, write_rows: Write, write_config: Write, tmp_path: Path, context: Context
) -> None:
    chats = make_chats()
    write_rows(chats)
    result = _run(write_config(data={"path": "rows.jsonl", "expert_column": "expert", "context": context.value}))
    policy = read_policy(tmp_path / "policy")
    engine = load_base_model(policy.manifest.activations, device="cpu")
    probes = Probes(policy.manifest.probe, policy.probe)
    online = [
        [
            float(over_windows((await engine.run(unit, probes)).rows)[1])
            for unit in Conversation.from_messages(chats[row]["messages"]).units(context)
        ]
        for row in result.split.certified
    ]
    assert policy.turns is not None
    np.testing.assert_allclose(policy.turns.d, np.sort(np.concatenate(online)), atol=1e-5)
    assert policy.turns.lengths.tolist() == [len(scores) for scores in online]
    record = policy.manifest.calibration
    assert (record.rows, record.conversations) == (60, 60)
    assert record.turns == sum(map(len, online)) > 60
    certificate = result.certificate
    assert certificate == certify(policy.turns, 0.2, 0.1)
    assert (certificate.conversations, certificate.turns, certificate.max_turns) == (60, record.turns, 4)
    assert certificate.method is not Method.EXACT_BINOMIAL
    assert plan(policy, Budget()).rule.threshold == certificate.threshold


def test_the_summary_names_the_unit_the_turns_and_the_method(
    make_chats: Make, write_rows: Write, write_config: Write
) -> None:
    write_rows(make_chats())
    result = _run(write_config())
    certificate, counted = result.certificate, result.calls.counted
    rate = counted.rate_above(certificate.threshold)
    text = _summary(result)
    assert f"{certificate.turns} turns of 60 calibration conversations" in text
    assert f"{certificate.method.value}" in text
    assert "calls per judged turn" in text
    assert f"{rate:.4f}" in text
    budget = to_json(result)["budget"]
    assert (budget["unit"], budget["conversations"], budget["turns"]) == ("turn", 60, certificate.turns)
    assert budget["method"] == certificate.method.value
    assert budget["realised"] == rate
    assert (budget["test_conversations"], budget["test_turns"]) == (60, counted.turns)
    json.dumps(to_json(result))


def test_rows_of_one_turn_certify_as_before(make_rows: Make, write_rows: Write, write_config: Write) -> None:
    write_rows(make_rows())
    result = _run(write_config())
    assert result.policy.turns is None
    assert result.policy.unreadable is None
    assert result.policy.manifest.calibration.turns is None
    assert result.certificate == certify(result.policy.calibration.d, 0.2, 0.1)
    assert result.certificate.method is Method.EXACT_BINOMIAL


def test_unreadable_turns_are_counted_by_cause_and_paid_for_where_the_expert_gets_them(
    make_chats: Make, write_rows: Write, write_config: Write, tiny_bert: Path, tmp_path: Path
) -> None:
    chats = make_chats(400)
    for number, row in enumerate(chats):
        if number % 20 == 0:  # an earlier turn
            row["messages"] = [_user(["look", _IMAGE][1:]), _answer, *row["messages"]]
        elif number % 20 == 5:  # the last turn, which has the label
            row["messages"][-1] = _user([{"type": "text", "text": "look"}, _IMAGE])
        elif number % 20 == 10:
            row["messages"][-1] = _user("bread " * 400)
    write_rows(chats)
    base = {"model": str(tiny_bert), "layers": 1, "site": "residual", "device": "cpu", "max_tokens": 300}
    result = _run(write_config(base=base, budget={"alpha": 0.3, "delta": 0.1}))
    policy = read_policy(tmp_path / "policy")
    unreadable = policy.unreadable
    assert unreadable is not None
    chosen = result.split.certified
    assert unreadable.count(Unreadable.NONTEXT) == int(np.isin(chosen % 20, [0, 5]).sum()) > 0
    assert unreadable.count(Unreadable.OVERLONG) == int((chosen % 20 == 10).sum()) > 0
    # They are no rows of training, calibration or test.
    split = result.split
    used = np.concatenate([split.train, split.calibration, split.test])
    assert not np.isin(used % 20, [5, 10]).any()
    assert sum(split.unreadable.values()) == 40
    paying = plan(policy, Budget(unreadable=frozenset(Unreadable)))
    assert paying.certificate.turns == result.certificate.turns + len(unreadable)
    assert paying.rule.threshold > plan(policy, Budget()).rule.threshold == result.certificate.threshold
    text = _summary(result)
    assert f"{len(unreadable)} other turns cannot be read" in text
    assert "on_overlong: expert" in text
    assert to_json(result)["budget"]["unreadable"] == {
        "overlong": unreadable.count(Unreadable.OVERLONG),
        "nontext": unreadable.count(Unreadable.NONTEXT),
    }


def test_rows_without_a_label_certify_the_budget_alone(
    make_chats: Make, write_rows: Write, write_config: Write, tmp_path: Path
) -> None:
    chats = make_chats(400)
    for number, row in enumerate(chats):
        row["split"] = "train" if number < 200 else "test" if number < 250 else "calibration"
        if number >= 300:
            del row["expert"]
            row["label"] = None
    write_rows(chats)
    result = _run(write_config())
    policy = read_policy(tmp_path / "policy")
    assert policy.turns is not None
    assert (policy.turns.conversations, policy.calibration.d.size) == (150, 50)
    assert policy.calibration.label is not None
    assert result.split.unlabelled["calibration"] == 100
    assert "100 without a label: they count in the budget alone" in _summary(result)


def test_a_calibration_part_without_any_label_certifies_the_budget(
    make_chats: Make, write_rows: Write, write_config: Write, tmp_path: Path
) -> None:
    chats = make_chats(300)
    for number, row in enumerate(chats):
        row["split"] = "train" if number < 200 else "test" if number < 250 else "calibration"
        if number >= 250:
            row |= {"label": None, "expert": None}
    write_rows(chats)
    _run(write_config())
    policy = read_policy(tmp_path / "policy")
    assert policy.turns is not None
    assert policy.turns.conversations == 50
    assert policy.calibration.expert is None
    assert policy.calibration.label is None
    plan(policy, Budget())
    with pytest.raises(ConfigError, match="needs labelled calibration rows"):
        plan(policy, Budget(criterion=Criterion.AUROC))
    with pytest.raises(DataError, match="risks need them"):
        _run(write_config(budget={"alpha": 0.2, "delta": 0.1, "risk": {"metric": "error", "max": 0.5}}))


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_training_or_test_row_without_a_label_is_named(
    make_rows: Make, write_rows: Write, write_config: Write, part: str
) -> None:
    rows = make_rows()
    for number, row in enumerate(rows):
        row["split"] = "train" if number < 200 else "test" if number < 300 else "calibration"
    next(row for row in reversed(rows) if row["split"] == part)["label"] = None
    write_rows(rows)
    with pytest.raises(DataError, match=r"row [23]00: has no label, but is a t"):
        _run(write_config())


def test_calls_per_conversation_may_exceed_one(
    make_chats: Make, write_rows: Write, write_config: Write, tmp_path: Path
) -> None:
    write_rows(make_chats(600))
    result = _run(write_config(budget={"alpha": 1.2, "delta": 0.1, "unit": "conversation", "max_turns": 6}))
    policy = read_policy(tmp_path / "policy")
    assert policy.turns is not None
    assert (result.certificate.unit, result.certificate.max_turns) == ("conversation", 6)
    assert policy.manifest.calibration.max_turns == 6
    assert policy.turns.count_above(result.certificate.threshold) / policy.turns.conversations <= 1.2
    assert "calls per conversation" in _summary(result)
    budget = to_json(result)["budget"]
    counted = result.calls.counted
    assert budget["realised"] == counted.count_above(result.certificate.threshold) / counted.conversations


@pytest.mark.parametrize("unit", ["turn", "conversation"])
def test_the_documents_name_the_turns_and_the_unit(
    make_chats: Make, write_rows: Write, write_config: Write, tmp_path: Path, unit: str
) -> None:
    chats = make_chats(600)
    for row in chats[::10]:
        row["messages"] = [_user([_IMAGE]), _answer, *row["messages"]]
    write_rows(chats)
    alpha = 1.2 if unit == "conversation" else 0.4
    config = write_config(budget={"alpha": alpha, "delta": 0.1, "unit": unit})
    result = _run(config)
    write_documents(result, load_config(config))
    turns, unreadable = result.policy.turns, result.policy.unreadable
    assert turns is not None
    assert unreadable is not None
    data = f"{turns.turns:,} turns of {turns.conversations:,} conversations"
    page = (tmp_path / "policy" / "report.html").read_text()
    assert f"on {data};" in page
    assert f"betting, {data}" in page
    assert f"{len(unreadable)} with content other than text" in page
    assert ("The policy's own budget is 1.2 calls per conversation" in page) == (unit == "conversation")
    assert "in nine" not in page
    card = (tmp_path / "policy" / "MODEL_CARD.md").read_text()
    per = "judged turn" if unit == "turn" else "conversation"
    assert f"| budget | alpha {alpha} calls per {per}" in card
    assert f"| certificate | betting, on {data} of at most {turns.max_turns} turns |" in card
    assert f"{len(unreadable)} with content other than text" in card
    # The configuration to copy states the policy's own budget.
    snippet = re.sub("<[^>]*>", "", page.partition('id="snippet"')[2].partition("</code>")[0])
    assert f"alpha: {alpha}" in snippet


@pytest.mark.parametrize(("unit", "alpha"), [("turn", 0.2), ("conversation", 1.2)])
def test_an_evaluation_counts_the_calls_of_whole_conversations(
    make_chats: Make, write_rows: Write, write_config: Write, tmp_path: Path, unit: str, alpha: float
) -> None:
    chats = make_chats(400)
    for number, row in enumerate(chats):
        row["split"] = "train" if number < 200 else "test" if number < 300 else "calibration"
    chats[205]["messages"] = [_user("bread"), _answer, _user([_IMAGE])]
    chats[350]["label"] = None
    data = write_rows(chats)
    result = _run(write_config(budget={"alpha": alpha, "delta": 0.1, "unit": unit}))
    done = CliRunner().invoke(
        app, ["evaluate", str(tmp_path / "policy"), "--data", str(data), "--to", str(tmp_path / "to"), "--json"]
    )
    assert done.exit_code == 0, done.output
    budget = json.loads(done.stdout)["budget"]
    calls = result.calls
    assert budget["realised"] == pytest.approx(calls.realised, abs=1e-6)
    assert budget["expected"] == pytest.approx(calls.expected)
    assert budget["unit"] == unit
    assert (budget["test_conversations"], budget["test_turns"]) == (calls.counted.conversations, calls.counted.turns)
    assert (budget["method"], budget["turns"]) == ("betting", result.certificate.turns)
    answer = json.loads(done.stdout)
    assert answer["rows"] == result.split.test.size == 99
    assert answer["left_out"] == {"used": 300, "dependent": 0, "unusable": 1, "refused": 0}


def test_too_few_conversations_are_refused_before_anything_is_computed(
    make_chats: Make, write_rows: Write, write_config: Write, tmp_path: Path
) -> None:
    """60 conversations have 150 turns, which would do if they were independent."""
    write_rows(make_chats())
    with pytest.raises(InfeasibleBudgetError):
        _run(write_config(budget={"alpha": 0.02, "delta": 0.1}))
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "CALIBRATE.yml"}


@pytest.mark.parametrize(
    ("budget", "problem"),
    [
        ({"alpha": 1.0}, "less than 1"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 0.2, "max_turns": 0}, "max_turns"),
        ({"alpha": 0.2, "unit": "message"}, "unit"),
    ],
)
def test_a_mistake_is_named(write_config: Write, budget: Row, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_config(write_config(budget=budget))
