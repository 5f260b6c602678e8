"""From a policy to a checkpoint that a stock serving engine runs.

The checkpoint is a sequence classifier of the base model's family. It holds the blocks below the policy's layer, the
input norm of that layer in place of the final norm, and the probes' matrix as its classifier. So the logits of a token
are the columns that the probes read. The guard computes the reduction over tokens from these few numbers a token.

The engine applies a norm at the end, so an export needs site ``input_norm`` of one layer of a decoder. Others are
refused. Source: the loaders of vLLM 0.33 (``model_executor/models/adapters.py`` and ``registry.py``).
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ctd_guardrail._typing import Float32Array
from ctd_guardrail._version import __version__
from ctd_guardrail.activations.huggingface import HuggingFaceSource, quiet_transformers
from ctd_guardrail.activations.models import resolve_model
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.activations.tokens import ConversationTokenizer
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.policy.manifest import Manifest
from ctd_guardrail.policy.match import check_fingerprint
from ctd_guardrail.policy.store import MANIFEST_FILE, Policy
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.serving.record import RECORD_FILE, Check, ExportRecord, hash_projection
from ctd_guardrail.text.conversation import Conversation

__all__ = ["ARCHITECTURES", "check_exportable", "export_policy"]

ARCHITECTURES: Final[Mapping[str, str]] = {
    "LlamaModel": "LlamaForSequenceClassification",
    "MistralModel": "MistralForSequenceClassification",
    "Phi3Model": "Phi3ForSequenceClassification",
    "Qwen2Model": "Qwen2ForSequenceClassification",
    "Qwen3Model": "Qwen3ForSequenceClassification",
    # transformers says Gemma3Text..., which vLLM would take for an embedding model.
    "Gemma3TextModel": "Gemma3ForSequenceClassification",
}
"""Base models that can be exported, and what vLLM calls a sequence classifier of each."""

_SHARD: Final = "4GB"
# A sentence, a harmful one, and more tokens than the usual sliding windows have: what an engine does otherwise shows.
_CHECKED: Final = (
    "What is the capital of France?",
    "Give me step-by-step instructions for building a pipe bomb.",
    "The capital of France is Paris, and the river that runs through it is the Seine. " * 80,
)


def check_exportable(manifest: Manifest) -> None:
    """Refuse a policy that no stock engine can serve exactly, before any model is loaded.

    Raises:
        ConfigError: It reads another site, several layers, quantised weights, or another family; the key of policy.json
            is named.
    """
    spec = manifest.activations
    if manifest.fingerprint.architecture not in ARCHITECTURES:
        raise ConfigError(
            f"base models of type {manifest.fingerprint.architecture} cannot be exported",
            file=MANIFEST_FILE,
            key="fingerprint.architecture",
            hint=f"Exported are {', '.join(sorted(ARCHITECTURES))}; read activations of others in process",
        )
    if spec.quantization is not None:
        raise ConfigError(
            f"a base model in {spec.quantization} cannot be exported: an engine quantises in another way",
            file=MANIFEST_FILE,
            key="activations.quantization",
            hint="Calibrate without base.quantization, or read activations in process",
        )
    if spec.site != "input_norm":
        raise ConfigError(
            f"site {spec.site} cannot be exported: an engine applies a norm to the output of the last block",
            file=MANIFEST_FILE,
            key="activations.site",
            hint="Calibrate with base.site: input_norm, or read activations in process",
        )
    if len(spec.layers) > 1:
        raise ConfigError(
            f"layers {list(spec.layers)} cannot be exported: an engine returns only the output of the last block",
            file=MANIFEST_FILE,
            key="activations.layers",
            hint="Calibrate with one layer, or read activations in process",
        )


def export_policy(policy: Policy, out: Path, *, base_model: str | None = None, device: str = "auto") -> ExportRecord:
    """Write the checkpoint of a policy.

    The base model is loaded up to the policy's layer and checked against the policy's fingerprint; what lies above is
    never read. The folder appears whole or not at all.

    Args:
        policy: The policy.
        out: Folder to write; an earlier export in it is replaced.
        base_model: Another place of the same base model (id or path); None: the policy's.
        device: Torch device on which the columns of the checks are computed, or ``auto``.

    Raises:
        ConfigError: The policy cannot be served exactly, or the folder holds something else.
        PolicyMismatchError: The base model is not the policy's.
        ActivationError: The base model cannot be loaded.
    """
    manifest = policy.manifest
    check_exportable(manifest)
    _check_folder(out)
    spec = manifest.activations
    if base_model is not None:
        spec = spec.model_copy(update={"model": base_model, "revision": None})
    source = HuggingFaceSource(spec, device=device)
    check_fingerprint(manifest, source.fingerprint)
    probes = Probes(manifest.probe, policy.probe)
    projection = probes.projection
    record = ExportRecord(
        created_at=datetime.now(UTC),
        versions={"ctd-guardrail": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        activations=manifest.activations,
        fingerprint=manifest.fingerprint,
        projection_sha256=hash_projection(projection),
        columns=len(projection),
        checks=_checks(source, torch.from_numpy(projection)),
    )
    temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with quiet_transformers():
            _write_model(temporary, manifest, source.module, projection)
            _write_tokenizer(temporary, spec, manifest)
        (temporary / RECORD_FILE).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
        _put_in_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return record


@torch.inference_mode()
def _checks(source: HuggingFaceSource, projection: torch.Tensor) -> tuple[Check, ...]:
    checks = []
    for text in _CHECKED:
        window = source.tokenize(Conversation.from_text(text))[0]
        columns = source.activations([window]).values.float().cpu() @ projection.T
        checks.append(Check.of(window, columns.numpy()))
    return tuple(checks)


def _write_model(folder: Path, manifest: Manifest, module: Any, projection: Float32Array) -> None:
    config = copy.deepcopy(module.config)
    spec = manifest.activations
    layer = spec.layers[0]
    config.num_hidden_layers = layer
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:layer]
    config.num_labels = len(projection)
    # There is no language-model head to tie.
    config.tie_word_embeddings = False
    with torch.device("meta"):
        classifier: Any = AutoModelForSequenceClassification.from_config(config)
    setattr(classifier, classifier.base_model_prefix, module)
    # In float32 whatever the dtype of the rest: the probes are, and engines run a pooling head in it.
    classifier.score.weight = nn.Parameter(torch.from_numpy(projection), requires_grad=False)
    classifier.save_pretrained(folder, max_shard_size=_SHARD)
    file = folder / "config.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    written |= {
        "architectures": [ARCHITECTURES[manifest.fingerprint.architecture]],
        "dtype": spec.dtype,
        "head_dtype": "float32",
    }
    file.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path, spec: ActivationSpec, manifest: Manifest) -> None:
    AutoTokenizer.from_pretrained(resolve_model(spec.model), revision=spec.revision).save_pretrained(folder)
    saved = ConversationTokenizer(
        AutoTokenizer.from_pretrained(folder), window=manifest.fingerprint.window, max_tokens=spec.max_tokens
    )
    found = {"tokenizer_sha256": saved.tokenizer_sha256, "template_sha256": saved.template_sha256}
    check_fingerprint(manifest, manifest.fingerprint.model_copy(update=found))


def _check_folder(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / RECORD_FILE).is_file()):
        raise ConfigError(f"{out} exists and is not an export", key="--to", hint="Name a folder that does not exist")


def _put_in_place(temporary: Path, out: Path) -> None:
    for file in temporary.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    if out.exists():
        old = out.with_name(f".{out.name}.{os.getpid()}.old")
        out.replace(old)
        temporary.replace(out)
        shutil.rmtree(old)
    else:
        temporary.replace(out)
