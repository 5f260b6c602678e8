"""Loading a Hugging Face model as an expert, and feeding it padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ctd_guardrail.activations.huggingface import hash_weights, pick_device, quiet_transformers
from ctd_guardrail.activations.models import resolve_model
from ctd_guardrail.activations.tokens import Ids, TextEncoder
from ctd_guardrail.config.experts import LocalExpertConfig
from ctd_guardrail.errors import ActivationError, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["LocalModel", "load", "padded_batches"]

_LARGEST_WINDOW: Final = 4096
# The padded size of a forward pass, and its rows: a causal model gives up to 256k logits for each of them.
_MAX_BATCH_TOKENS: Final = 4096
_MAX_BATCH_ROWS: Final = 8


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A loaded model and what its readers need to know.

    Attributes:
        kind: Whether it classifies sequences or predicts tokens.
        model: The model, on its device, in evaluation mode.
        tokenizer: Its tokenizer; for the chat template only.
        encoder: Text to token ids.
        window: Tokens in one forward window.
        identity: Architecture, weights, tokenizer and dtype.
    """

    kind: Literal["classifier", "causal"]
    model: Any
    tokenizer: PreTrainedTokenizerBase
    encoder: TextEncoder
    window: int
    identity: str


def load(config: LocalExpertConfig) -> LocalModel:
    """Load the model that a configuration names. Blocks for as long as that takes.

    Raises:
        ConfigError: The model cannot be found or loaded, is of no supported kind, or lacks weights.
        DependencyError: ``package:NAME`` is not installed.
    """
    path = resolve_model(config.model)
    # Pickled checkpoints can run code when they are read: only safetensors are.
    options: dict[str, Any] = {"dtype": getattr(torch, config.dtype), "use_safetensors": True}
    with quiet_transformers():
        try:
            settings = AutoConfig.from_pretrained(path, revision=config.revision)
            kind = _kind(config.model, settings)
            auto: Any = AutoModelForSequenceClassification if kind == "classifier" else AutoModelForCausalLM
            tokenizer = AutoTokenizer.from_pretrained(path, revision=config.revision)
            model, info = auto.from_pretrained(path, revision=config.revision, output_loading_info=True, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"expert {config.model!r} cannot be loaded: {str(error).splitlines()[0]}",
                key="expert.model",
                hint="Give a Hugging Face id, a local folder, or package:NAME, with safetensors weights",
            ) from error
    missing = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if missing:
        # Transformers would fill them with random numbers.
        raise ConfigError(
            f"the files of expert {config.model!r} lack {len(missing)} weights, for example {missing[0]}",
            key="expert.model",
            hint="Download the model again, or use a checkpoint with a trained head",
        )
    try:
        encoder = TextEncoder(tokenizer)
    except ActivationError as error:
        raise ConfigError(error.problem, key="expert.model", hint=error.hint) from error
    return LocalModel(
        kind=kind,
        model=model.eval().to(pick_device(config.device)),
        tokenizer=tokenizer,
        encoder=encoder,
        window=_window(model, tokenizer),
        identity=f"{type(model).__name__}:{hash_weights(model)[:16]}:{encoder.sha256[:16]}:{config.dtype}",
    )


def _kind(name: str, settings: Any) -> Literal["classifier", "causal"]:
    architectures = settings.architectures or ["none"]
    if architectures[0].endswith("ForSequenceClassification"):
        return "classifier"
    if architectures[0] == MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(settings.model_type):
        return "causal"
    raise ConfigError(
        f"expert {name!r} has architecture {architectures[0]}, which is neither a sequence classifier nor a causal "
        "language model",
        key="expert.model",
        hint="Use a checkpoint whose config.json names ...ForSequenceClassification or ...ForCausalLM",
    )


def _window(model: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    settings = model.config.get_text_config()
    positions = getattr(settings, "max_position_embeddings", None) or _LARGEST_WINDOW
    # RoBERTa counts positions from behind the padding index; its tokenizer knows how many are left.
    positions = min(positions, int(tokenizer.model_max_length))
    return min(positions, _LARGEST_WINDOW)


def padded_batches(
    rows: Sequence[Ids], *, pad_id: int | None, device: torch.device
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Yield the rows in right-padded batches, shortest first.

    Args:
        rows: Token ids.
        pad_id: Fills short rows up; None: rows of different length never share a batch.
        device: Where the tensors go.

    Yields:
        Indices into ``rows``, and ``input_ids`` and ``attention_mask``, shape [rows of the batch, longest].
    """
    group: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        full = len(group) == _MAX_BATCH_ROWS or (len(group) + 1) * len(rows[i]) > _MAX_BATCH_TOKENS
        if group and (full or (pad_id is None and len(rows[group[0]]) != len(rows[i]))):
            yield group, _pad([rows[i] for i in group], pad_id or 0, device)
            group = []
        group.append(i)
    if group:
        yield group, _pad([rows[i] for i in group], pad_id or 0, device)


def _pad(rows: Sequence[Ids], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    width = max(len(row) for row in rows)
    return {
        "input_ids": torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], device=device),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device),
    }
