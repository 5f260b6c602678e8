"""Files in the layout of vLLM's ``extract_hidden_states`` stand in for the forward pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from calibrate.cli.app import app
from calibrate.config.file import load_config
from calibrate.features.hidden_states import HiddenStatesSource, scan_files
from calibrate.pipeline.run import run
from ctd_guardrail.activations.huggingface import HuggingFaceSource
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.text.conversation import Conversation

Make = Callable[..., list[dict[str, Any]]]
Write = Callable[..., Path]

WINDOWS = [(1, 5, 9, 12), (1, 7), (1, 30, 31, 32, 33, 34)]


def write_files(model: Path, prompts: Sequence[Sequence[int]], folder: Path, layers: Sequence[int]) -> None:
    """Write what vLLM's ExampleHiddenStatesConnector writes: one file a request, named by the request."""
    folder.mkdir(exist_ok=True)
    base: Any = AutoModelForCausalLM.from_pretrained(model)
    for number, prompt in enumerate(prompts):
        with torch.inference_mode():
            states = base(input_ids=torch.tensor([list(prompt)]), output_hidden_states=True).hidden_states
        tensors = {
            "hidden_states": torch.stack([states[layer][0] for layer in layers], dim=1),
            "token_ids": torch.tensor(list(prompt)),
        }
        save_file(tensors, folder / f"cmpl-{number:032x}-0.safetensors")
        (folder / f"cmpl-{number:032x}-0.safetensors.lock").touch()


def open_source(model: Path, folder: Path, *, written: tuple[int, ...], **spec: Any) -> HiddenStatesSource:
    files = scan_files(folder, written, progress=Progress(disable=True))
    activations = ActivationSpec.model_validate({"model": str(model), "window": 64} | spec)
    return HiddenStatesSource(HuggingFaceSource(activations, device="cpu"), files)


@pytest.mark.parametrize("site", ["residual", "input_norm"])
@pytest.mark.parametrize("layers", [(2,), (1, 2)])
def test_activations_equal_those_of_a_forward_pass_also_where_files_are_absent(
    site: str, layers: tuple[int, ...], tiny_llama: Path, tmp_path: Path
) -> None:
    write_files(tiny_llama, [WINDOWS[2], WINDOWS[0]], tmp_path / "states", (1, 2))
    source = open_source(tiny_llama, tmp_path / "states", written=(1, 2), layers=layers, site=site)
    read = source.activations(WINDOWS)
    computed = HuggingFaceSource(source.spec, device="cpu").activations(WINDOWS)
    assert read.lengths == computed.lengths
    torch.testing.assert_close(read.values, computed.values, atol=2e-5, rtol=0)


@pytest.mark.parametrize("site", ["residual", "input_norm"])
def test_a_policy_from_files_is_the_one_from_forward_passes(
    site: str,
    make_rows: Make,
    write_rows: Write,
    write_config: Write,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = make_rows(300)
    rows[7]["text"] = "a long row " * 20
    write_rows(rows)
    base = {"model": str(tiny_llama), "layers": 2, "site": site, "device": "cpu", "window": 128}
    computed = run(load_config(write_config(base=base, output="./computed")), console=Console(quiet=True))

    config = write_config(base=base, hidden_states={"path": "states"})
    done = CliRunner().invoke(app, ["prompts", str(config), str(tmp_path / "requests.jsonl")])
    assert done.exit_code == 0, done.output
    requests = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert {request["max_tokens"] for request in requests} == {1}
    assert len(requests) > len(rows)
    write_files(tiny_llama, [request["prompt"] for request in requests], tmp_path / "states", (2,))
    monkeypatch.setattr(HuggingFaceSource, "activations", None)
    read = run(load_config(config), console=Console(quiet=True))
    assert read.policy.manifest.fingerprint == computed.policy.manifest.fingerprint
    assert read.policy.manifest.activations == computed.policy.manifest.activations
    np.testing.assert_allclose(read.policy.calibration.d, computed.policy.calibration.d, atol=1e-4)

    (tmp_path / "states" / f"cmpl-{9:032x}-0.safetensors").unlink()
    shutil.rmtree(tmp_path / ".ctd-cache")
    with pytest.raises(DataError, match=r"rows\.jsonl, row \d+: no file of hidden states holds its tokens"):
        run(load_config(config), console=Console(quiet=True))


def change(**changes: Any) -> Callable[[Path], None]:
    def apply(file: Path) -> None:
        tensors = load_file(file)
        save_file(
            {name: changes[name](tensor) if name in changes else tensor for name, tensor in tensors.items()}, file
        )

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-8]), "is not a file of hidden states"),
        (lambda file: save_file({"values": torch.zeros(3)}, file), "is not a file of hidden states"),
        (change(hidden_states=lambda x: x[:-1].clone()), "one hidden state a token"),
        (change(hidden_states=lambda x: x[:, 0].clone()), "one hidden state a token"),
        (change(hidden_states=lambda x: x[:, :1].clone()), r"holds 1 layers, not 2.*hidden_states\.layers"),
        (change(hidden_states=lambda x: x.bfloat16()), "holds torch.bfloat16, but base.dtype is float32"),
        (change(hidden_states=lambda x: x * float("nan")), "not finite"),
        (change(hidden_states=lambda x: x[..., :16].clone()), "16 wide, and those of"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(
    damage: Callable[[Path], None], message: str, tiny_llama: Path, tmp_path: Path
) -> None:
    write_files(tiny_llama, WINDOWS, tmp_path / "states", (1, 2))
    damage(sorted((tmp_path / "states").glob("*.safetensors"))[1])
    with pytest.raises(DataError, match=rf"cmpl-0*1-0\.safetensors: .*{message}"):
        open_source(tiny_llama, tmp_path / "states", written=(1, 2), layers=(2,)).activations(WINDOWS)


def test_a_folder_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="shared_storage_path"):
        scan_files(tmp_path, (1,), progress=Progress(disable=True))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"hidden_states": {"path": "states", "layers": [2]}}, "lack layers of `base.layers`"),
        ({"hidden_states": {"path": "states"}, "run_on": {"type": "ray"}}, "leave a cluster nothing to compute"),
        ({"hidden_states": {"path": "states"}, "other": 1}, "other: this key is unknown"),
    ],
)
def test_sections_that_contradict_each_other_are_refused(
    sections: dict[str, Any], message: str, write_config: Write
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write_config(**sections))


def test_prompts_of_one_text_are_written_once_and_turns_that_are_too_long_are_left_out(
    write_rows: Write, write_config: Write, tiny_llama: Path, tmp_path: Path
) -> None:
    rows = [{"text": text, "label": int(text == "b"), "expert": 0.5} for text in ("a", "b", "a")]
    base = {"model": str(tiny_llama), "layers": 2, "max_tokens": 64}
    write_rows(rows)
    command = ["prompts", str(write_config(base=base)), str(tmp_path / "requests.jsonl")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    source = HuggingFaceSource(ActivationSpec(model=str(tiny_llama), layers=(2,)), device="cpu")

    def written() -> list[list[int]]:
        return [json.loads(line)["prompt"] for line in (tmp_path / "requests.jsonl").read_text().splitlines()]

    def expected(*texts: str) -> list[list[int]]:
        return [list(source.tokenize(Conversation.from_text(text))[0]) for text in texts]

    assert written() == expected("a", "b")
    # The last turn is too long to be read, the one before it counts in the budget.
    turns = [("user", "c"), ("assistant", "d"), ("user", "x" * 65)]
    messages = [{"role": role, "content": content} for role, content in turns]
    write_rows([*rows, {"messages": messages, "label": 0, "expert": 0.5}])
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert written() == expected("a", "b", "c")
