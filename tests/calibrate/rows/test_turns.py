"""Every turn that the rail would judge counts in the budget, once, in its own conversation."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from calibrate.config.file import SplitConfig
from calibrate.pipeline.material import Material
from calibrate.rows.data import Dataset, read_dataset
from calibrate.rows.turns import Turns, collect_turns
from ctd_guardrail.policy.budget import certify
from ctd_guardrail.policy.unreadable import Unreadable
from ctd_guardrail.text.conversation import Context

Write = Callable[..., Path]

_IMAGE = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:,"}}]


def _chat(*texts: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


def _read(write_rows: Write, rows: list[dict[str, Any]], context: Context = Context.CONVERSATION) -> Dataset:
    labelled = [{"text": "the only unsafe row", "label": 1}, *({"label": 0} | row for row in rows)]
    return read_dataset([write_rows(labelled)], context=context, for_budget=True)


def _texts(turns: Turns) -> list[list[str]]:
    """The last message of every unit, by conversation."""
    found: dict[int, list[str]] = {}
    for unit, number in zip(turns.units, turns.conversation.tolist(), strict=True):
        found.setdefault(number, []).append(unit.messages[-1].content)
    return list(found.values())


def test_a_row_of_several_turns_gives_each_of_them(write_rows: Write) -> None:
    dataset = _read(write_rows, [{"messages": _chat("one", "a", "two", "b", "", "c", "three")}, {"text": "alone"}])
    turns = collect_turns(dataset, np.array([1, 2]))
    assert _texts(turns) == [["one", "two", "three"], ["alone"]]
    assert [len(unit.messages) for unit in turns.units] == [1, 3, 7, 1], "each with the conversation up to it"
    assert turns.rows.tolist() == [1, 1, 1, 2]
    # The label belongs to the last one.
    assert dataset.conversations[1] == turns.units[2]


def test_rows_of_one_conversation_give_its_turns_once(write_rows: Write) -> None:
    rows = [
        {"messages": _chat("one"), "conversation": "x"},
        {"messages": _chat("another"), "conversation": "y"},
        {"messages": _chat("one", "a", "two"), "conversation": "x"},
        {"messages": _chat("one", "a", "two", "b", "three"), "conversation": "x"},
    ]
    dataset = _read(write_rows, rows)
    for row in (1, 3, 4):
        turns = collect_turns(dataset, np.array([row, 2]))
        assert _texts(turns) == [["one", "two", "three"], ["another"]]
    assert collect_turns(dataset, np.array([3])).rows.tolist() == [1, 3, 4]


def test_a_text_that_the_rail_remembers_is_one_turn(write_rows: Write) -> None:
    dataset = _read(write_rows, [{"messages": _chat("yes", "a", "no", "b", "yes")}], Context.LAST_TURN)
    assert _texts(collect_turns(dataset, np.array([1]))) == [["yes", "no"]]
    dataset = _read(write_rows, [{"messages": _chat(_IMAGE, "a", _IMAGE, "b", "yes")}], Context.LAST_TURN)
    # The rail remembers no decision about what it cannot read.
    assert len(collect_turns(dataset, np.array([1]))) == 3


def test_unreadable_turns_keep_their_conversation_and_their_cause(write_rows: Write) -> None:
    rows = [
        {"messages": _chat(_IMAGE)},
        {"messages": _chat("one", "a", _IMAGE, "b", "three")},
        {"messages": _chat("long", "a", "short")},
    ]
    dataset = _read(write_rows, rows)
    assert dataset.is_readable.tolist() == [True, False, True, True]
    turns = collect_turns(dataset, np.array([1, 2, 3]))
    turns = turns.with_overlong(np.array(["long" in unit.messages[-1].content for unit in turns.units]))
    scored = turns.scored(np.array([0.3, 0.1, 0.2]))
    assert scored.readable.d.tolist() == [0.1, 0.2, 0.3]
    assert scored.readable.conversation is not None
    assert scored.readable.conversation.tolist() == [0, 1, 0]
    unreadable = scored.unreadable
    assert unreadable is not None
    # The first conversation has no readable turn, so its number is the last one.
    assert unreadable.conversation.tolist() == [2, 0, 1]
    assert unreadable.is_overlong.tolist() == [False, False, True]
    everything = unreadable.beside(scored.readable, set(Unreadable))
    assert sorted(everything.lengths.tolist()) == [1, 2, 3]
    assert unreadable.beside(scored.readable, {Unreadable.OVERLONG}).lengths.tolist() == [2, 2]


def test_the_page_s_examples_are_two_turns_each(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "calibration.md").read_text(encoding="utf-8")
    section = page.partition("### Rows, turns and conversations")[2].partition("### Turns that")[0]
    rows = re.findall(r"^{.*}$", section, re.MULTILINE)
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([*rows, '{"text": "the only unsafe row", "label": 1}']), encoding="utf-8")
    dataset = read_dataset([file], for_budget=True)
    for row in (0, 1, 2, 3):
        assert _texts(collect_turns(dataset, np.array([row]))) == [["Hello", "Bye"]]
    assert dataset.is_labelled.tolist() == [True, True, True, False, True]


_LONGEST = 50
_STAY = 0.9  # mean length about 10
_DRIFT, _RHO, _ALPHA, _DELTA = 0.1, 0.5, 0.1, 0.05


def _conversation(number: int, length: int) -> dict[str, Any]:
    texts = [f"{number} {place}" for place in range(length)]
    return {"messages": _chat(*[text for each in texts for text in (each, "ok")][:-1]), "label": number % 2}


def _true_rate(threshold: float) -> float:
    """P(d > threshold) over turns: d rises by .1 standard deviations a turn."""
    place = np.arange(_LONGEST)
    reached = _STAY**place
    return float(reached @ norm.sf(threshold - _DRIFT * place) / reached.sum())


def test_scores_that_rise_along_a_conversation_hold_the_budget(write_rows: Write) -> None:
    """Rows drawn one per conversation, while every turn is judged, break it in every draw."""
    rates: list[float] = []
    of_single_rows: list[float] = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        lengths = np.minimum(rng.geometric(1 - _STAY, 1000), _LONGEST).tolist()
        rows = [_conversation(number, length) for number, length in enumerate(lengths)]
        dataset = read_dataset([write_rows(rows)], for_budget=True)
        material = Material.of(dataset, SplitConfig(train=0.05, calibration=0.9, test=0.05, seed=seed))
        turns = material.certified
        assert turns.conversation[-1] == 899
        # Scores of one conversation share a part, and rise from turn to turn.
        place = np.array([len(unit.messages) // 2 for unit in turns.units])
        shared = rng.normal(size=900)[turns.conversation]
        d = np.sqrt(_RHO) * shared + np.sqrt(1 - _RHO) * rng.normal(size=place.size) + _DRIFT * place
        rates.append(_true_rate(certify(turns.scored(d).readable, _ALPHA, _DELTA).threshold))
        drawn = turns.conversation.searchsorted(np.arange(900)) + (rng.random(900) * np.bincount(turns.conversation))
        of_single_rows.append(_true_rate(certify(np.sort(d[drawn.astype(int)]), _ALPHA, _DELTA).threshold))
    assert min(of_single_rows) > _ALPHA
    # At delta = .05, four of 12 would happen in one of 450 runs.
    assert sum(rate > _ALPHA for rate in rates) < 4
    assert np.mean(rates) > 0.5 * _ALPHA
