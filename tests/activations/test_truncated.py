"""What a truncated model gives is what the full model has at that place, and it reads nothing above."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from ctd_guardrail.activations.huggingface import HuggingFaceSource
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.errors import ActivationError
from tests.support.internals import model_of

DECODERS = ("gemma2", "gemma3", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3", "stablelm")
FAMILIES = ("bert", "modernbert", *DECODERS)
# Around the sliding window of 16, equal neighbours, one token, and one that is attended block by block.
LENGTHS = (5, 17, 17, 60, 16, 15, 1, 130)
TOLERANCE = 1e-5


def source(folder: Path, **options: Any) -> HuggingFaceSource:
    spec = ActivationSpec.model_validate({"model": str(folder), "layers": 1, "site": "residual"} | options)
    return HuggingFaceSource(spec, device="cpu")


def windows_of(lengths: tuple[int, ...]) -> list[tuple[int, ...]]:
    torch.manual_seed(0)
    return [tuple(torch.randint(5, 40, (length,)).tolist()) for length in lengths]


@torch.inference_mode()
def in_full_model(
    folder: Path, windows: list[tuple[int, ...]], layers: tuple[int, ...], site: str
) -> list[torch.Tensor]:
    """Return the activations of each window, alone in the whole model, as transformers itself computes them."""
    model = AutoModel.from_pretrained(folder).eval()
    seen: list[torch.Tensor] = []
    for layer in layers if site == "input_norm" else ():
        block = model.layers[layer]
        norm = block.attn_norm if hasattr(block, "attn_norm") else block.input_layernorm
        norm.register_forward_hook(lambda *arguments: seen.append(arguments[2][0]))
    values = []
    for window in windows:
        states = model(torch.tensor([window]), output_hidden_states=True).hidden_states
        values.append(torch.cat(seen or [states[layer][0] for layer in layers], dim=-1))
        seen.clear()
    return values


@pytest.mark.parametrize(
    ("family", "site"),
    [*((family, "residual") for family in FAMILIES), *((family, "input_norm") for family in FAMILIES[1:])],
)
@pytest.mark.parametrize("layers", [(1,), (1, 2)])
def test_a_batch_gives_each_window_what_the_full_model_has_of_it_alone(
    family: str, site: str, layers: tuple[int, ...], base_model: Callable[[str], Path]
) -> None:
    lengths = LENGTHS[:-1] if family == "bert" else LENGTHS  # it has 128 positions
    folder, windows = base_model(family), windows_of(lengths)
    ragged = source(folder, layers=layers, site=site).activations(windows)
    assert ragged.lengths == lengths
    for alone, part in zip(in_full_model(folder, windows, layers, site), ragged.values.split(lengths), strict=True):
        assert (part - alone).abs().max() <= TOLERANCE * alone.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_families_that_are_tested_are_packed(family: str, base_model: Callable[[str], Path]) -> None:
    assert model_of(source(base_model(family))).is_packed == (family != "stablelm")


@pytest.mark.parametrize("family", ["llama", "modernbert", "phi"])
def test_the_residual_above_the_last_block_is_not_normalised(family: str, base_model: Callable[[str], Path]) -> None:
    """``hidden_states[L]`` of transformers is: it holds the output of the final norm."""
    folder, (window,) = base_model(family), windows_of((20,))
    model = AutoModel.from_pretrained(folder).eval()
    entered: list[torch.Tensor] = []
    norm = next(getattr(model, name) for name in ("norm", "final_norm", "final_layernorm") if hasattr(model, name))
    norm.register_forward_pre_hook(lambda _module, arguments: entered.append(arguments[0][0]))
    with torch.inference_mode():
        normed = model(torch.tensor([window]), output_hidden_states=True).hidden_states[-1][0]
    depth = model.config.num_hidden_layers
    values = source(folder, layers=depth).activations([window]).values
    torch.testing.assert_close(values, entered[0], atol=TOLERANCE, rtol=0.0)
    assert (values - normed).abs().max() > 0.1


def test_layers_are_counted_as_hidden_states_are(base_model: Callable[[str], Path]) -> None:
    folder, (window,) = base_model("llama"), windows_of((20,))
    values = {layer: source(folder, layers=layer).activations([window]).values for layer in (1, 2)}
    assert torch.equal(values[1], in_full_model(folder, [window], (1,), "residual")[0])
    assert (values[2] - values[1]).abs().max() > 0.1


def test_no_cache_is_filled_and_no_other_layers_are_kept(base_model: Callable[[str], Path]) -> None:
    """A cache, which decoders use unless told otherwise, would mix the sequences of a packed row."""
    truncated = source(base_model("mistral"))
    outputs: list[Any] = []
    model_of(truncated).module.register_forward_hook(lambda *arguments: outputs.append(arguments[2]))
    truncated.activations(windows_of(LENGTHS))
    (output,) = outputs
    assert list(output) == ["last_hidden_state"]


@pytest.mark.parametrize("family", ["llama", "stablelm"])
def test_the_side_on_which_a_tokenizer_pads_does_not_matter(
    family: str, base_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Left padding without a mask moves every position: nothing here pads on the left."""
    folder = base_model(family)
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(tmp_path)
    windows = windows_of(LENGTHS)
    assert torch.equal(source(tmp_path).activations(windows).values, source(folder).activations(windows).values)


class Scorer:
    """Opens safetensors files and notes which tensors' data is read."""

    def __init__(self, read: set[str], *arguments: Any, **options: Any) -> None:
        self.read, self.file = read, safetensors.safe_open(*arguments, **options)

    def keys(self) -> Any:
        return self.file.keys()

    def get_slice(self, name: str) -> Any:
        return Slice(self.read, name, self.file.get_slice(name))

    def __exit__(self, *arguments: object) -> None:
        self.file.__exit__(*arguments)


class Slice:
    def __init__(self, read: set[str], name: str, data: Any) -> None:
        self.read, self.name, self.data = read, name, data

    def __getitem__(self, key: Any) -> Any:
        self.read.add(self.name)
        return self.data[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)


@pytest.mark.parametrize("site", ["residual", "input_norm"])
def test_nothing_above_the_layer_is_read_from_disk_but_its_norm(
    site: str, base_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = base_model("llama")
    full = AutoModelForCausalLM.from_pretrained(folder)
    full.config.tie_word_embeddings = False
    full.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    read: set[str] = set()
    monkeypatch.setattr("transformers.modeling_utils.safe_open", lambda *a, **o: Scorer(read, *a, **o))
    truncated = source(tmp_path, layers=1, site=site)

    names = load_file(tmp_path / "model.safetensors").keys()
    below = {name for name in names if name.startswith(("model.embed_tokens.", "model.layers.0."))}
    norm = "model.layers.1.input_layernorm.weight" if site == "input_norm" else "model.norm.weight"
    assert "lm_head.weight" in names
    assert read == below | {norm}
    assert len(model_of(truncated).module.layers) == 1


def test_missing_weights_are_an_error_and_not_random_numbers(tiny_llama: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(tiny_llama)
    state = {name: weight for name, weight in model.state_dict().items() if "layers.0.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    with pytest.raises(ActivationError, match="lack 3 weights"):
        source(tmp_path)
