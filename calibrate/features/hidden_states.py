"""Activations from files that vLLM has written, instead of a forward pass.

vLLM's method ``extract_hidden_states`` writes one safetensors file a request. It holds ``token_ids``, shape [tokens],
and ``hidden_states``, shape [tokens, layers, hidden size], with ascending layers. Layer id l is the residual stream
that enters block l, ``hidden_states[l]`` of transformers. Source: vLLM 0.33, ``ExampleHiddenStatesConnector``, and
``EagleModelMixin._maybe_add_hidden_state`` in ``model_executor/models/interfaces.py``.

A file belongs to the window whose token ids it holds. Its name does not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from rich.progress import Progress
from safetensors import SafetensorError, safe_open

from calibrate.rows.data import Dataset
from ctd_guardrail._typing import IntArray
from ctd_guardrail.activations.huggingface import HuggingFaceSource
from ctd_guardrail.activations.source import Windows
from ctd_guardrail.activations.spec import ActivationSpec, Fingerprint
from ctd_guardrail.errors import ActivationError, DataError, InputError, OverlongError
from ctd_guardrail.probes.ragged import Ragged
from ctd_guardrail.text.conversation import Conversation

__all__ = ["HiddenStateFiles", "HiddenStatesSource", "check_rows", "scan_files"]

_STATES: Final = "hidden_states"
_TOKENS: Final = "token_ids"


@dataclass(frozen=True, slots=True)
class HiddenStateFiles:
    """Files by the tokens that they hold.

    Attributes:
        files: By the digest of their token ids.
        layers: Layers in each file, ascending.
    """

    files: Mapping[bytes, Path]
    layers: tuple[int, ...]

    def __contains__(self, window: Sequence[int]) -> bool:
        """Return whether a file holds these tokens."""
        return _digest(window) in self.files

    def read(self, window: Sequence[int], spec: ActivationSpec) -> torch.Tensor:
        """Return the residual stream at the layers of a spec, shape [tokens, layers, hidden size].

        Raises:
            DataError: The file is damaged, of another data type, or holds values that are not finite.
        """
        file = self.files[_digest(window)]
        try:
            with safe_open(file, framework="pt") as opened:
                values: torch.Tensor = opened.get_tensor(_STATES)
        except (OSError, SafetensorError) as error:
            raise _damaged(file, error) from error
        if values.dtype is not getattr(torch, spec.dtype):
            raise DataError(
                f"holds {values.dtype}, but base.dtype is {spec.dtype}",
                file=file,
                hint="Serve in the dtype that the rail uses, or set base.dtype",
            )
        if not values.isfinite().all():
            raise DataError("holds values that are not finite", file=file, hint="Use a wider dtype")
        return values[:, [self.layers.index(layer) for layer in spec.layers]]


def scan_files(folder: Path, layers: tuple[int, ...], *, progress: Progress) -> HiddenStateFiles:
    """Read the token ids and the number of layers of each file in a folder.

    Args:
        folder: ``shared_storage_path`` of vLLM's connector.
        layers: Layers that vLLM was told to write, ascending.
        progress: Progress bars.

    Raises:
        DataError: There is no file, or one is damaged or holds another number of layers.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise DataError("holds no *.safetensors", file=folder, hint="Give the shared_storage_path of vLLM's connector")
    files = {}
    for path in progress.track(paths, description="Files of hidden states"):
        try:
            with safe_open(path, framework="pt") as opened:
                shape = opened.get_slice(_STATES).get_shape()
                tokens = opened.get_tensor(_TOKENS)
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from error
        if shape[:-2] != [*tokens.shape] or tokens.ndim != 1 or tokens.is_floating_point():
            raise DataError(
                "does not hold one hidden state a token", file=path, hint="Remove it and send the prompt to vLLM again"
            )
        if shape[1] != len(layers):
            raise DataError(
                f"holds {shape[1]} layers, not {len(layers)}",
                file=path,
                hint="Write vLLM's eagle_aux_hidden_state_layer_ids under hidden_states.layers",
            )
        files[_digest(tokens.tolist())] = path
    return HiddenStateFiles(files, layers)


class HiddenStatesSource:
    """An :class:`~ctd_guardrail.activations.source.ActivationSource` that reads files.

    The base model gives its tokenizer, its fingerprint and its norms. It runs only for windows that no file holds: the
    rows inside benign context, on which candidates are compared.

    Args:
        source: The base model.
        files: Files that vLLM has written.
    """

    def __init__(self, source: HuggingFaceSource, files: HiddenStateFiles) -> None:
        self._source = source
        self._files = files

    @property
    def spec(self) -> ActivationSpec:
        """The activations to read."""
        return self._source.spec

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the loaded base model."""
        return self._source.fingerprint

    def tokenize(self, conversation: Conversation) -> Windows:
        """Return the conversation's windows.

        Raises:
            OverlongError: There are more tokens than ``spec.max_tokens``.
        """
        return self._source.tokenize(conversation)

    def activations(self, windows: Sequence[tuple[int, ...]]) -> Ragged:
        """Return the activations of all tokens of all windows, one segment a window, in order.

        Raises:
            DataError: A file is damaged, or not of this base model.
        """
        absent = [window for window in windows if window not in self._files]
        computed: Iterator[torch.Tensor] = iter(())
        if absent:
            computed = iter(self._source.activations(absent).values.split([len(window) for window in absent]))
        parts = [self._read(window) if window in self._files else next(computed) for window in windows]
        return Ragged(torch.cat(parts), tuple(len(window) for window in windows))

    def _read(self, window: tuple[int, ...]) -> torch.Tensor:
        hidden = self._files.read(window, self.spec)
        if hidden.shape[2] != self.fingerprint.hidden_size:
            raise DataError(
                f"hidden states are {hidden.shape[2]} wide, and those of {self.spec.model!r} "
                f"{self.fingerprint.hidden_size}",
                file=self._files.files[_digest(window)],
            )
        return self._source.from_hidden_states(hidden)


def check_rows(
    dataset: Dataset,
    rows: IntArray,
    tokenize: Callable[[Conversation], Windows],
    files: HiddenStateFiles,
    *,
    progress: Progress,
) -> None:
    """Refuse rows that vLLM has not read. Activations of two engines would not follow one law.

    Args:
        dataset: The rows.
        rows: Indices of the rows that are needed.
        tokenize: The base model's tokenizer.
        files: Files that vLLM has written.
        progress: Progress bars.

    Raises:
        DataError: No file holds a window of a row; file and row are named.
    """
    for row in progress.track(rows.tolist(), description="Rows and their files"):
        try:
            windows = tokenize(dataset.conversations[row])
        except OverlongError:
            continue  # no base model reads it
        except (InputError, ActivationError) as error:
            raise dataset.error(row, error.problem, hint=error.hint) from error
        if not all(window in files for window in windows):
            raise dataset.error(
                row,
                "no file of hidden states holds its tokens",
                hint="Send vLLM every line that `ctd-calibrate prompts` writes of these rows",
            )


def _digest(tokens: Sequence[int]) -> bytes:
    return hashlib.sha256(np.asarray(tokens, dtype="<i8").tobytes()).digest()


def _damaged(file: Path, error: Exception) -> DataError:
    return DataError(
        f"is not a file of hidden states ({type(error).__name__})",
        file=file,
        hint="Wait until vLLM has written it, or remove it and send the prompt again",
    )
