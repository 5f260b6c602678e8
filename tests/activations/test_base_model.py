import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from ctd_guardrail.activations.base_model import BatchedBaseModel, load_base_model
from ctd_guardrail.activations.huggingface import HuggingFaceSource
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.errors import ActivationError, ConfigError, DependencyError, OverlongError
from ctd_guardrail.probes.ragged import Ragged, segment_mean
from ctd_guardrail.text.conversation import Conversation
from tests.support.internals import batcher_of, source_of, thread_of

TEXTS = ["a", "how are you", "one two three four five six", "x" * 300, "longer words " * 40, ""]
FAMILIES = ("bert", "gemma3", "llama", "modernbert", "stablelm")
CONVERSATIONS = [Conversation.from_text(text) for text in TEXTS]


def spread_of(rows: np.ndarray) -> np.ndarray:
    return rows.std(axis=0)


def source(folder: Path, **options: Any) -> HuggingFaceSource:
    return HuggingFaceSource(ActivationSpec(model=str(folder), **{"layers": 1, "site": "residual"} | options))


def test_token_activations_are_those_that_heads_see(base_model: Callable[[str], Path]) -> None:
    engine = BatchedBaseModel(source(base_model("llama"), layers=(1, 2), window=32))
    assert engine.width == 64
    tokens = engine.tokens_of(CONVERSATIONS)
    means = engine.run_many(CONVERSATIONS, segment_mean)
    engine.close()
    assert max(len(ragged.lengths) for ragged in tokens) > 1
    for ragged, mean in zip(tokens, means, strict=True):
        assert ragged.values.shape == (sum(ragged.lengths), 64)
        assert np.allclose(segment_mean(ragged), mean, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_pools_the_same_alone_and_in_a_batch(family: str, base_model: Callable[[str], Path]) -> None:
    engine = BatchedBaseModel(source(base_model(family), layers=(1, 2)))
    batched = engine.run_many(CONVERSATIONS, segment_mean)
    alone = [engine.run_many([conversation], segment_mean)[0] for conversation in CONVERSATIONS]
    engine.close()
    limit = 1e-4 * spread_of(np.concatenate(batched))
    assert all((np.abs(rows - same) <= limit).all() for rows, same in zip(batched, alone, strict=True))


def test_online_and_offline_give_the_same_rows(tiny_bert: Path) -> None:
    engine = BatchedBaseModel(source(tiny_bert))
    offline = engine.run_many(CONVERSATIONS, segment_mean)

    async def online() -> list[np.ndarray]:
        readings = await asyncio.gather(*(engine.run(conversation, segment_mean) for conversation in CONVERSATIONS))
        return [reading.rows for reading in readings]

    with ThreadPoolExecutor(4) as pool:
        for rows in pool.map(lambda _: asyncio.run(online()), range(9)):
            assert [len(each) for each in rows] == [len(each) for each in offline]
            assert np.allclose(np.concatenate(offline), np.concatenate(rows), atol=1e-5)
    engine.close()


def test_a_reading_tells_waiting_from_computing(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = BatchedBaseModel(source(tiny_bert))
    clock = iter([10.0, 15.0, 17.0])
    monkeypatch.setattr("ctd_guardrail.activations.base_model.perf_counter", lambda: next(clock))
    reading = asyncio.run(engine.run(CONVERSATIONS[0], segment_mean))
    engine.close()
    assert (reading.queue_ms, reading.forward_ms) == (5000.0, 2000.0)


def test_policies_with_different_heads_share_a_forward_pass(tiny_bert: Path) -> None:
    engine = BatchedBaseModel(source(tiny_bert))

    def first_token(ragged: Ragged) -> torch.Tensor:
        starts = np.cumsum([0, *ragged.lengths[:-1]])
        return ragged.values[starts]

    async def both() -> list[np.ndarray]:
        calls = [engine.run(c, head) for c in CONVERSATIONS[:3] for head in (segment_mean, first_token)]
        return [reading.rows for reading in await asyncio.gather(*calls)]

    mixed = asyncio.run(both())
    assert np.allclose(mixed[0::2], engine.run_many(CONVERSATIONS[:3], segment_mean), atol=1e-5)
    assert np.allclose(mixed[1::2], engine.run_many(CONVERSATIONS[:3], first_token), atol=1e-5)
    engine.close()


@pytest.mark.parametrize("family", ["tiny_bert", "tiny_llama"])
@pytest.mark.parametrize("length", [1, 125, 126, 127, 253, 700])
def test_windows_hold_every_token_once(family: str, length: int, request: pytest.FixtureRequest) -> None:
    tokenize = source(request.getfixturevalue(family), window=64).tokenize
    whole = source(request.getfixturevalue(family)).tokenize
    text = " ".join("abcdefghij"[i % 10] for i in range(length))
    windows = tokenize(Conversation.from_text(text))
    assert max(map(len, windows)) <= 64
    added = {1, 2, 3}  # [CLS], [SEP], <s>, </s>
    tokens = [token for window in windows for token in window if token not in added]
    assert tokens == [t for window in whole(Conversation.from_text(text)) for t in window if t not in added]
    if family == "tiny_llama":
        assert all(window[0] == 1 for window in windows)


def test_too_many_tokens_are_refused_and_never_cut(tiny_bert: Path) -> None:
    tokenize = source(tiny_bert, max_tokens=50).tokenize
    assert sum(map(len, tokenize(Conversation.from_text("a " * 50)))) == 52
    for text in ("a " * 51, "a" * 10_000, " " * 10_000_000):
        with pytest.raises(OverlongError, match="more than 50 tokens"):
            tokenize(Conversation.from_text(text))


def test_what_a_user_types_as_a_special_token_stays_text(tiny_bert: Path) -> None:
    tokenize = source(tiny_bert).tokenize
    (window,) = tokenize(Conversation.from_text("a [SEP] b [CLS]"))
    assert window.count(3) == 1
    assert window.count(2) == 1


def test_the_chat_template_sees_alternating_turns_beginning_with_the_user(tiny_llama: Path) -> None:
    tokenize = source(tiny_llama)._tokenize
    conversation = Conversation.from_messages(
        [
            {"role": "system", "content": "secret"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "a"},
            {"role": "user", "content": "b"},
        ]
    )
    assert tokenize._render(conversation) == "<s><|user|></s><|assistant|>hello</s><|user|>a\n\nb</s>"


def test_the_calendar_does_not_change_activations(tiny_llama: Path, tmp_path: Path) -> None:
    AutoModel.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}{{ date_string }}" + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path)
    rendered = source(tmp_path)._tokenize._render(Conversation.from_text("a"))
    assert rendered.startswith("26 Jul 202426 Jul 2024<s>")


def test_a_template_that_refuses_does_not_quote_the_conversation(tiny_llama: Path, tmp_path: Path) -> None:
    AutoModel.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = (
        "{% if messages[0]['content'] == 'canary' %}{{ raise_exception(messages[0]['content']) }}{% endif %}x"
    )
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ActivationError, match="chat template refused") as error:
        source(tmp_path).tokenize(Conversation.from_text("canary"))
    assert "canary" not in str(error.value)


def test_the_registry_loads_a_model_once_for_all_threads(tiny_bert: Path) -> None:
    spec = ActivationSpec(model=str(tiny_bert), layers=(1,), site="residual", max_tokens=777)
    barrier = threading.Barrier(6)

    def load(_: int) -> BatchedBaseModel:
        barrier.wait()
        return load_base_model(spec, device="cpu")

    with ThreadPoolExecutor(6) as pool:
        engines: Sequence[BatchedBaseModel] = list(pool.map(load, range(6)))
    assert len({id(engine) for engine in engines}) == 1


def test_a_model_that_nobody_uses_any_more_goes_with_its_thread(tiny_bert: Path) -> None:
    spec = ActivationSpec(model=str(tiny_bert), layers=(1,), site="residual", max_tokens=77)
    first, second = load_base_model(spec, device="cpu"), load_base_model(spec, device="cpu")
    assert first is second
    thread, source = thread_of(batcher_of(first)), weakref.ref(source_of(first))
    first.run_many([Conversation.from_text("hello")], segment_mean)
    del first
    gc.collect()
    assert thread.is_alive()
    del second
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
    gc.collect()
    assert source() is None
    assert load_base_model(spec, device="cpu").run_many([Conversation.from_text("hello")], segment_mean)


def test_fingerprints_tell_weights_tokenizers_and_templates_apart(tiny_llama: Path, tmp_path: Path) -> None:
    base = source(tiny_llama).fingerprint
    assert source(tiny_llama).fingerprint == base

    model, tokenizer = AutoModel.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    with torch.no_grad():
        model.layers[0].mlp.up_proj.weight.mul_(1.001)
    model.save_pretrained(tmp_path)
    tokenizer.chat_template += " "
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(tmp_path)
    changed = source(tmp_path).fingerprint
    assert changed.weights_sha256 != base.weights_sha256
    assert changed.tokenizer_sha256 != base.tokenizer_sha256
    assert changed.template_sha256 != base.template_sha256


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": 3}, ConfigError, "layer 3 does not exist"),
        ({"layers": 2, "site": "input_norm"}, ConfigError, "layer 2 does not exist"),
        ({"site": "input_norm"}, ConfigError, "have no input norm"),
        ({"window": 4096}, ConfigError, "exceeds the model's 128 positions"),
        ({"model": "/nowhere/at/all"}, ActivationError, "cannot be opened"),
        ({"model": "package:not_a_package_at_all"}, DependencyError, "pip install not-a-package-at-all"),
    ],
)
def test_what_cannot_be_loaded_is_said_plainly(
    tiny_bert: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    spec = ActivationSpec.model_validate({"model": str(tiny_bert), "layers": 1, "site": "residual"} | options)
    with pytest.raises(error, match=message):
        HuggingFaceSource(spec)
