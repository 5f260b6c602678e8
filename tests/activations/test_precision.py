"""Data types, quantisation and several devices: what they change in a score, and that neighbours never do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModel, AutoTokenizer

from ctd_guardrail.activations.huggingface import HuggingFaceSource
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.activations.truncated import _device_map, _Names
from ctd_guardrail.errors import DependencyError
from ctd_guardrail.probes.ragged import Ragged, segment_mean
from tests.support.internals import model_of

LENGTHS = (5, 90, 17, 17, 60, 33, 12, 44)


def source(folder: Path, device: str = "cpu", **options: Any) -> HuggingFaceSource:
    spec = ActivationSpec.model_validate({"model": str(folder), "layers": 2, "site": "residual"} | options)
    return HuggingFaceSource(spec, device=device)


def windows() -> list[tuple[int, ...]]:
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(5, 40, length).tolist()) for length in LENGTHS]


def scores(truncated: HuggingFaceSource, *, at_once: bool = True) -> NDArray[np.float64]:
    """Return 200 random linear scores of the mean activation of each window, shape [windows, 200]."""
    batches = [windows()] if at_once else [[window] for window in windows()]
    means = [segment_mean(Ragged(each.values, each.lengths)) for each in map(truncated.activations, batches)]
    pooled = torch.cat(means).double().numpy()
    directions = np.random.default_rng(1).normal(size=(pooled.shape[1], 200))
    scored: NDArray[np.float64] = pooled @ directions
    return scored


def drift(changed: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Root mean square of what changed in a score, over its spread between windows."""
    return float(np.sqrt(np.mean((changed - reference) ** 2)) / reference.std(axis=0).mean())


@pytest.mark.parametrize("family", ["gemma3", "llama", "modernbert"])
def test_batches_and_bfloat16_move_a_score_little(family: str, base_model: Callable[[str], Path]) -> None:
    full, half = source(base_model(family)), source(base_model(family), dtype="bfloat16")
    reference = scores(full)
    assert drift(scores(full, at_once=False), reference) < 1e-5
    assert drift(scores(half, at_once=False), scores(half)) < 0.02
    assert 1e-4 < drift(scores(half), reference) < 0.05


@pytest.fixture(scope="module")
def wider_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks of 64 weights share a scale in 4 bits: rows have to be a few blocks wide."""
    folder = tmp_path_factory.mktemp("wider")
    config = AutoConfig.from_pretrained(tiny_llama)
    config.hidden_size = config.intermediate_size = 256
    config.head_dim = 64
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_quantised_weights_are_smaller_and_no_token_depends_on_its_neighbours(scheme: str, wider_llama: Path) -> None:
    pytest.importorskip("bitsandbytes")
    quantised, full = source(wider_llama, quantization=scheme), source(wider_llama)
    weight = model_of(quantised).module.layers[0].mlp.up_proj.weight
    whole = model_of(full).module.layers[0].mlp.up_proj.weight
    assert weight.numel() * weight.element_size() * (4 if scheme == "int8" else 8) == whole.numel() * 4
    assert drift(scores(quantised, at_once=False), scores(quantised)) < 1e-5
    # Random weights make more of an error than trained ones do.
    assert 1e-3 < drift(scores(quantised), scores(full)) < {"int8": 0.2, "nf4": 1.0}[scheme]


def test_quantisation_is_pinned(wider_llama: Path) -> None:
    pytest.importorskip("bitsandbytes")
    hashes = {
        source(wider_llama, quantization=scheme).fingerprint.weights_sha256 for scheme in (None, "int8", "int8", "nf4")
    }
    assert len(hashes) == 3


def test_quantisation_without_its_package_says_what_to_install(
    base_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(DependencyError, match=r"ctd-guardrail\[large\]"):
        source(base_model("llama"), quantization="int8")


def test_parts_are_spread_over_devices_evenly_and_in_order(base_model: Callable[[str], Path]) -> None:
    config = AutoConfig.from_pretrained(base_model("llama"))
    assert _device_map(_Names.of(config), 5, ["cuda:0", "cuda:1"]) == {
        "embed_tokens": "cuda:0",
        "rotary_emb": "cuda:0",
        "layers.0": "cuda:0",
        "layers.1": "cuda:0",
        "layers.2": "cuda:0",
        "layers.3": "cuda:1",
        "layers.4": "cuda:1",
        "norm": "cuda:1",
    }
    bert = AutoConfig.from_pretrained(base_model("bert"))
    placed = _device_map(_Names.of(bert), 2, ["cuda:0", "cuda:1"])
    assert [placed[f"encoder.layer.{i}"] for i in range(2)] == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(("family", "site"), [("bert", "residual"), ("llama", "residual"), ("llama", "input_norm")])
def test_a_model_that_is_loaded_part_by_part_is_the_same(
    family: str, site: str, base_model: Callable[[str], Path]
) -> None:
    pytest.importorskip("accelerate")
    whole = source(base_model(family), site=site)
    spread = source(base_model(family), "cpu,cpu", site=site)
    assert torch.equal(whole.activations(windows()).values, spread.activations(windows()).values)
    assert spread.fingerprint == whole.fingerprint
