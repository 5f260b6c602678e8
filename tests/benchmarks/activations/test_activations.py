"""Both sides of each comparison compute the same thing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModel

from benchmarks.activations.base_models import BaseModel, lognormal_lengths, random_llama
from benchmarks.activations.rivals import naive, sorted_and_padded
from benchmarks.activations.stopwatch import Stopwatch


@pytest.fixture
def llama(tmp_path: Path) -> BaseModel:
    return random_llama(tmp_path, "cpu", num_hidden_layers=2, hidden_size=32, intermediate_size=32, vocab_size=300)


def test_a_conversation_has_as_many_tokens_as_words(llama: BaseModel) -> None:
    lengths = lognormal_lengths(20)
    source = llama.source(1)
    assert [len(source.tokenize(each)[0]) for each in llama.conversations(lengths)] == lengths.tolist()
    assert 60 < lognormal_lengths(1_000).mean() < 110


def test_every_way_reads_every_window(llama: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    load = AutoModel.from_pretrained

    def counting(*arguments: object, **options: object) -> object:
        model = load(*arguments, **options)
        model.register_forward_pre_hook(
            lambda _module, _arguments, inputs: rows.append(int(inputs["attention_mask"].sum())), with_kwargs=True
        )
        return model

    monkeypatch.setattr(AutoModel, "from_pretrained", counting)
    monkeypatch.setattr("benchmarks.activations.rivals.AutoModelForCausalLM", AutoModel)
    windows = [tuple(range(1, 1 + int(length))) for length in (4, 90, 17, 33)] * 10
    for way in (sorted_and_padded(llama, 1), naive(llama)):
        rows.clear()
        way(windows)
        assert sum(rows) == sum(map(len, windows))


def test_variants_take_turns_in_alternating_order() -> None:
    order: list[str] = []
    variants = {name: lambda name=name: order.append(name) for name in "ab"}  # type: ignore[misc]
    medians = Stopwatch("cpu").medians(variants, 2)
    assert order == list("ab" + "ba" + "ab")
    assert np.isfinite(list(medians.values())).all()
