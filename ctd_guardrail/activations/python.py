"""An activation source that the operator's own Python code makes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Final

import torch

from ctd_guardrail.activations.base_model import BatchedBaseModel, load_base_model, share_base_model
from ctd_guardrail.activations.source import ActivationSource, Windows
from ctd_guardrail.activations.spec import ActivationSpec, Fingerprint
from ctd_guardrail.errors import ActivationError, ConfigError, CtdError, InputError, OverlongError
from ctd_guardrail.probes.ragged import Ragged
from ctd_guardrail.runtime.factory import Factory, place_of
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.text.conversation import Conversation

__all__ = ["PythonSource", "open_base_model"]

_KEY: Final = "source.factory"
_ERRORS: Final = "Let the source raise the errors that docs/write-your-own.md names"


def open_base_model(
    spec: ActivationSpec,
    source: Factory | None,
    *,
    device: str = "auto",
    runtime: Runtime | None = None,
) -> BatchedBaseModel:
    """Return the base model of a spec, from Hugging Face or from a source. Calibration and rail both call this.

    Args:
        spec: What is read.
        source: Makes the source; None: a Hugging Face model.
        device: Torch device of the Hugging Face model.
        runtime: Shares loaded models; None: the runtime of the process.

    Raises:
        ConfigError: A layer or the site does not exist in the model, or the factory does not return such a source.
        ActivationError: The model cannot be found or loaded, or the source cannot read a first text.
        DependencyError: ``package:NAME`` is not installed.
    """
    if source is None:
        return load_base_model(spec, device=device, runtime=runtime)
    return share_base_model((spec, source.key), lambda: PythonSource(source, spec), runtime)


class PythonSource:
    """Calls a source of the operator, and accepts only what the protocol allows.

    Args:
        factory: Makes the source.
        spec: What the source shall compute: the factory's positional argument.

    Raises:
        ConfigError: The factory cannot be called, or does not return a source of this spec.
    """

    def __init__(self, factory: Factory, spec: ActivationSpec) -> None:
        made = factory(spec, section="source")
        if not isinstance(made, ActivationSource):
            raise ConfigError(
                f"{factory.name} returned a {type(made).__name__}, which is not an activation source",
                key=_KEY,
                hint="Return an object with spec, fingerprint, tokenize and activations, "
                "see ctd_guardrail.ActivationSource",
            )
        if made.spec != spec:
            raise ConfigError(
                f"the source that {factory.name} returned has another spec than the one requested",
                key=_KEY,
                hint="Use the argument of the factory as its spec",
            )
        if not isinstance(made.fingerprint, Fingerprint):
            raise ConfigError(
                f"the fingerprint of the source that {factory.name} returned is a {type(made.fingerprint).__name__}",
                key=_KEY,
                hint="Return a ctd_guardrail.Fingerprint",
            )
        self._source = made
        self._fingerprint = made.fingerprint
        self._width = made.fingerprint.hidden_size * len(spec.layers)

    @property
    def spec(self) -> ActivationSpec:
        """What was asked for."""
        return self._source.spec

    @property
    def fingerprint(self) -> Fingerprint:
        """What was loaded."""
        return self._fingerprint

    def tokenize(self, conversation: Conversation) -> Windows:
        """Return the conversation's windows. Thread-safe.

        Raises:
            OverlongError: There are more tokens than ``spec.max_tokens``.
            ActivationError: The source failed, or its windows are not lists of token ids.
        """
        try:
            windows = tuple(map(tuple, self._source.tokenize(conversation)))
        except (ActivationError, InputError):
            raise
        except Exception as error:  # noqa: BLE001  # code of others may raise anything
            raise _failure(error) from None
        if not windows or not all(windows) or not all(isinstance(token, int) for token in chain.from_iterable(windows)):
            raise ActivationError(
                "the source cut a conversation into windows that are not lists of token ids",
                hint="Return at least one window from `tokenize`, each a list of whole numbers",
            )
        if sum(map(len, windows)) > self.spec.max_tokens:
            raise OverlongError(
                f"the conversation has more than {self.spec.max_tokens} tokens",
                hint="Raise base.max_tokens and calibrate again, or shorten the input; on_failure decides about it",
            )
        return windows

    @torch.inference_mode()
    def activations(self, windows: Sequence[tuple[int, ...]]) -> Ragged:
        """Return the activations of all tokens of all windows, one segment a window, in order.

        Raises:
            ActivationError: The source failed, or its activations do not belong to these tokens.
        """
        try:
            ragged = self._source.activations(windows)
        except CtdError:
            raise
        except Exception as error:  # noqa: BLE001  # as above
            raise _failure(error) from None
        lengths = tuple(map(len, windows))
        # A row too many or too few would give one conversation the score of another.
        if (
            not isinstance(ragged, Ragged)
            or tuple(ragged.lengths) != lengths
            or tuple(ragged.values.shape) != (sum(lengths), self._width)
        ):
            raise ActivationError(
                f"the source did not return one activation of width {self._width} for each token",
                hint="The width is the fingerprint's hidden_size times the number of layers",
            )
        return ragged


def _failure(error: Exception) -> ActivationError:
    return ActivationError(f"the source raised {type(error).__name__} at {place_of(error)}", hint=_ERRORS)
