"""The models behind a NeMo rail, and what went wrong at their providers.

A rail keeps the answer of its model and hides the rest: why the answer ended, and every error without an HTTP status.
Both tell an outage from what a sender provoked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ctd_guardrail.errors import ExpertError, ExpertUnavailableError, ExpertVerdictError
from ctd_guardrail.experts.complaint import Cause, read_complaint, stated_error

__all__ = ["Heard", "listening", "provider_error"]

# Engines put each other's errors into their own, a few deep.
_DEEPEST_ERROR: Final = 4
# What a client raises that stumbles over the form of an answer, for example over an error that is a list of errors.
_UNREADABLE: Final = (TypeError, ValueError, LookupError, AttributeError)
_FIELDS: Final = {"message": "error_message", "code": "error_code", "type": "error_type", "param": "param"}


class Heard:
    """What came back from the models of one run.

    Attributes:
        error: The last exception of a provider; None: the last call was answered.
        finish_reason: Why the last answer ended, if the provider reports it.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.finish_reason: str | None = None


class _ListeningModel:
    """Asks a model, and records its answer. All other attributes are those of the model."""

    def __init__(self, model: Any, heard: Heard) -> None:
        self._model = model
        self._heard = heard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    async def generate_async(self, prompt: Any, *, stop: Any = None, **kwargs: Any) -> Any:
        """Return the model's answer."""
        try:
            response = await self._model.generate_async(prompt, stop=stop, **kwargs)
        except Exception as error:
            self._heard.error = error
            raise
        self._heard.error, self._heard.finish_reason = None, getattr(response, "finish_reason", None)
        return response


def listening(llms: Mapping[str, Any], heard: Heard) -> dict[str, Any]:
    """Return models that note what comes back from them."""
    return {name: model if model is None else _ListeningModel(model, heard) for name, model in llms.items()}


def provider_error(error: Exception, *, subject: str) -> ExpertError:
    """Return the expert's error for an exception of a provider.

    Args:
        error: The exception, inside those of NeMo's engines or by itself.
        subject: Whose model it is, for the message.
    """
    inner = _innermost(error)
    if hasattr(inner, "response_data"):  # NeMo's error for an HTTP 200 that is no chat completion
        stated = stated_error(inner.response_data)
        if stated is None:
            return ExpertVerdictError(
                f"{subject} got no chat completion from its model", hint="Check the model in the NeMo configuration"
            )
        return stated.error(subject=subject)
    status = _status(error) or _status(inner)
    if status is None and isinstance(inner, _UNREADABLE):
        return ExpertVerdictError(f"{subject} got an answer that NeMo Guardrails cannot read ({type(inner).__name__})")
    if status is None:
        return ExpertUnavailableError(f"{subject} failed ({type(inner).__name__})")
    body = getattr(inner, "body", None)
    fields = {name: getattr(inner, field, None) for name, field in _FIELDS.items()}
    complaint = read_complaint(status, body if isinstance(body, Mapping) else fields)
    return complaint.error(subject=subject, is_every=complaint.cause is Cause.PARAMETER)


def _innermost(error: Exception) -> BaseException:
    inner: BaseException = error
    for _ in range(_DEEPEST_ERROR):
        deeper = getattr(inner, "inner_exception", None)
        if not isinstance(deeper, BaseException):
            break
        inner = deeper
    return inner


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an exception, by either name for it; clients write 0 if there is none."""
    stated = (getattr(error, "status", None), getattr(error, "status_code", None))
    return next((status for status in stated if isinstance(status, int) and status > 0), None)
