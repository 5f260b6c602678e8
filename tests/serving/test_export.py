"""What an engine loads from an export gives, token by token, what the probes read in process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from ctd_guardrail.activations.huggingface import HuggingFaceSource
from ctd_guardrail.activations.tokens import ConversationTokenizer
from ctd_guardrail.cli.app import app
from ctd_guardrail.errors import ConfigError, PolicyFormatError, PolicyMismatchError
from ctd_guardrail.policy.store import Policy
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.serving.export import export_policy
from ctd_guardrail.serving.record import RECORD_FILE, check_projection, hash_projection, read_record
from ctd_guardrail.text.conversation import Conversation

Exported = Callable[..., tuple[Path, Policy, Path]]

TEXTS = ["a", "how are you", "one two three four five six seven", "longer words " * 20]


def reload(folder: Path) -> tuple[Any, torch.Tensor]:
    """Return the base of the export as transformers loads it, and its classifier in float32, as vLLM runs it."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    return model.base_model, model.score.weight.float()


def in_process(policy: Policy) -> tuple[HuggingFaceSource, torch.Tensor]:
    probes = Probes(policy.manifest.probe, policy.probe)
    return HuggingFaceSource(policy.manifest.activations, device="cpu"), torch.from_numpy(probes.projection)


@pytest.mark.parametrize("family", ["llama", "mistral", "phi3", "qwen2", "qwen3", "gemma3"])
def test_reloaded_logits_are_the_columns_in_process_to_the_last_bit(family: str, exported: Exported) -> None:
    _, policy, out = exported(family)
    source, projection = in_process(policy)
    base, score = reload(out)
    assert score.shape == projection.shape
    assert len(base.layers) == 2
    for text in TEXTS:
        for window in source.tokenize(Conversation.from_text(text)):
            with torch.inference_mode():
                logits = base(input_ids=torch.tensor([window]), use_cache=False).last_hidden_state[0].float() @ score.T
                columns = source.activations([window]).values.float() @ projection.T
            assert (logits - columns).abs().max() == 0.0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_policys_dtype_is_kept_and_the_probes_stay_in_float32(dtype: str, exported: Exported) -> None:
    _, policy, out = exported("llama", dtype)
    tensors = load_file(out / "model.safetensors")
    score = tensors.pop("score.weight")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{dtype}"}
    assert score.dtype == torch.float32
    config = json.loads((out / "config.json").read_text())
    assert (config["dtype"], config["head_dtype"]) == (dtype, "float32")
    source, projection = in_process(policy)
    assert torch.equal(score, projection)
    base, _ = reload(out)
    window = source.tokenize(Conversation.from_text(TEXTS[2]))[0]
    with torch.inference_mode():
        hidden = base(input_ids=torch.tensor([window]), use_cache=False).last_hidden_state[0]
        assert torch.equal(hidden.float() @ score.T, source.activations([window]).values.float() @ projection.T)


def test_only_what_the_policy_reads_is_written(exported: Exported) -> None:
    _, policy, out = exported("gemma3")
    names = load_file(out / "model.safetensors").keys()
    assert {name.split(".")[2] for name in names if ".layers." in name} == {"0", "1"}
    assert {name for name in names if ".layers." not in name} == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "score.weight",
    }
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["Gemma3ForSequenceClassification"]
    assert config["num_hidden_layers"] == len(config["layer_types"]) == 2
    assert len(config["id2label"]) == Probes(policy.manifest.probe, policy.probe).projection.shape[0]


def test_shards_are_reloaded_like_one_file(
    decoder: Callable[[str], Path],
    make_policy: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ctd_guardrail.serving.export._SHARD", "20KB")
    _, policy = make_policy(decoder("llama"))
    export_policy(policy, tmp_path / "out", device="cpu")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    source, projection = in_process(policy)
    base, score = reload(tmp_path / "out")
    assert torch.equal(score, projection)
    assert all(
        torch.equal(a, b) for a, b in zip(base.state_dict().values(), source.module.state_dict().values(), strict=True)
    )


def test_tokenizer_and_template_are_those_of_the_policy(exported: Exported) -> None:
    _, policy, out = exported()
    saved = ConversationTokenizer(AutoTokenizer.from_pretrained(out), window=64, max_tokens=1000)
    expected = policy.manifest.fingerprint
    assert saved.tokenizer_sha256 == expected.tokenizer_sha256
    assert saved.template_sha256 == expected.template_sha256


def test_the_record_knows_the_columns_of_a_window_of_full_length(exported: Exported) -> None:
    _, _, out = exported()
    record = read_record(out)
    base, score = reload(out)
    assert max(len(check.token_ids) for check in record.checks) == 64
    for check in record.checks:
        with torch.inference_mode():
            hidden = base(input_ids=torch.tensor([check.token_ids]), use_cache=False).last_hidden_state[0]
            np.testing.assert_array_equal((hidden @ score.T).numpy(), check.columns())


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"site": "residual"}, "activations.site"), ({"layers": (1, 2)}, "activations.layers")],
)
def test_what_no_engine_can_serve_exactly_is_refused_with_its_key(
    changes: dict[str, Any], key: str, decoder: Callable[[str], Path], make_policy: Callable[..., Any], tmp_path: Path
) -> None:
    _, policy = make_policy(decoder("llama"), **changes)
    with pytest.raises(ConfigError, match=f"policy.json: {key}"):
        export_policy(policy, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_encoders_are_refused(tiny_bert: Path, make_policy: Callable[..., Any], tmp_path: Path) -> None:
    _, policy = make_policy(tiny_bert, site="residual", layers=(1,))
    with pytest.raises(ConfigError, match=r"policy.json: fingerprint.architecture: .*BertModel"):
        export_policy(policy, tmp_path / "out")


def test_another_base_model_is_refused_and_nothing_is_left(
    decoder: Callable[[str], Path], make_policy: Callable[..., Any], tmp_path: Path
) -> None:
    _, policy = make_policy(decoder("llama"))
    with pytest.raises(PolicyMismatchError, match="architecture"):
        export_policy(policy, tmp_path / "out", base_model=str(decoder("mistral")), device="cpu")
    assert not list(tmp_path.iterdir())


def test_an_export_takes_the_place_of_an_earlier_one_and_of_nothing_else(
    decoder: Callable[[str], Path], make_policy: Callable[..., Any], tmp_path: Path
) -> None:
    folder, _ = make_policy(decoder("llama"))
    out = tmp_path / "out"
    command = ["export", "--policy", str(folder), "--to", str(out), "--device", "cpu"]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0
    assert "--pooler-config.task token_classify --dtype float32 --max-model-len 64" in first.output
    (out / "left-over").touch()
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert not (out / "left-over").exists()
    (out / RECORD_FILE).unlink()
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert "is not an export" in refused.output
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_record_of_other_probes_does_not_fit(exported: Exported) -> None:
    _, policy, out = exported()
    record, projection = read_record(out), Probes(policy.manifest.probe, policy.probe).projection
    check_projection(record, projection, folder=out)
    with pytest.raises(PolicyMismatchError, match="another pair of probes"):
        check_projection(record, projection * 2, folder=out)
    assert hash_projection(projection) != hash_projection(projection.reshape(-1, 16))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-9],
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace('"columns": 21', '"columns": 20'),
        lambda text: text.replace('"values": "', '"values": "!'),
        lambda text: text.replace('"values": "', '"values": "AADAfwAAwH8AAMB/AADAfw=='),
    ],
)
def test_a_damaged_record_is_refused(damage: Callable[[str], str], exported: Exported, tmp_path: Path) -> None:
    text = (exported()[2] / RECORD_FILE).read_text()
    assert damage(text) != text
    (tmp_path / RECORD_FILE).write_text(damage(text))
    with pytest.raises(PolicyFormatError, match=RECORD_FILE):
        read_record(tmp_path)
