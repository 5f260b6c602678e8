"""An expert that the operator's own Python code makes."""

from __future__ import annotations

import inspect
import logging
from numbers import Real
from pathlib import Path
from typing import Final

from ctd_guardrail.config.experts import PythonExpertConfig
from ctd_guardrail.errors import ConfigError, ExpertError, ExpertUnavailableError, ExpertVerdictError, InputError
from ctd_guardrail.experts.protocol import Expert, ExpertScore
from ctd_guardrail.policy.match import RECORDED
from ctd_guardrail.runtime.factory import Factory, place_of
from ctd_guardrail.text.conversation import Conversation

__all__ = ["PythonExpert"]

log = logging.getLogger(__name__)

_LONGEST_IDENTITY: Final = 512
_KEY: Final = "expert.factory"


class PythonExpert:
    """Calls an expert of the operator, and accepts only what the protocol allows.

    Args:
        config: The section.
        folder: Folder that the path of the factory's file starts from.

    Raises:
        ConfigError: The factory cannot be called, or does not return an expert.
    """

    def __init__(self, config: PythonExpertConfig, folder: Path) -> None:
        factory = Factory(*config.call_in(folder))
        self._expert = _check(factory(section="expert"), factory.name)
        self._identity = _check_identity(self._expert.identity, factory.name)

    @property
    def identity(self) -> str:
        """The identity that the expert states."""
        return self._identity

    async def score(self, conversation: Conversation) -> ExpertScore:
        """Return the expert's score.

        Raises:
            ExpertUnavailableError: The expert raised an exception that the protocol does not name.
            ExpertVerdictError: The expert returned something else than a score.
            ExpertError, InputError: As the expert raises them.
        """
        return _check_score(await self._call(conversation))

    async def _call(self, conversation: Conversation) -> object:
        try:
            return await self._expert.score(conversation)
        except (ExpertError, InputError):
            raise
        except Exception as error:  # noqa: BLE001  # code of others may raise anything
            # The sender of a text may provoke an exception, so only a fault of the connection counts as an outage.
            raise ExpertUnavailableError(
                f"the expert raised {type(error).__name__} at {place_of(error)}",
                hint="Raise the errors that docs/write-your-own.md names",
                is_transient=isinstance(error, OSError),
            ) from None

    async def aclose(self) -> None:
        """Close the expert. An exception is logged: it must not keep others from closing."""
        try:
            await self._expert.aclose()
        except Exception as error:  # noqa: BLE001  # as above
            log.warning("the expert raised %s when it was closed", type(error).__name__)


def _check(made: object, factory: str) -> Expert:
    """Return the expert that a factory made.

    Raises:
        ConfigError: It is no expert.
    """
    if isinstance(made, type):
        raise ConfigError(
            f"{factory} returned the class {made.__name__}, not an object of it", key=_KEY, hint="Call the class"
        )
    for name in ("identity", "score", "aclose"):
        if inspect.getattr_static(made, name, None) is None and name not in getattr(made, "__dict__", {}):
            raise ConfigError(
                f"{factory} returned a {type(made).__name__}, which has no {name!r}",
                key=_KEY,
                hint="Return an object with identity, score and aclose, see ctd_guardrail.Expert",
            )
    for name in ("score", "aclose"):
        if not inspect.iscoroutinefunction(inspect.unwrap(getattr(made, name))):
            raise ConfigError(
                f"{name!r} of the {type(made).__name__} that {factory} returned is not async",
                key=_KEY,
                hint=f"Write `async def {name}`, and use asyncio.to_thread for work that blocks",
            )
    assert isinstance(made, Expert)  # noqa: S101  # it has all that the protocol asks for
    return made


def _check_identity(identity: object, factory: str) -> str:
    """Return an identity that a policy may record.

    Raises:
        ConfigError: It is no line of text, or one that stands for scores of unknown origin.
    """
    if not isinstance(identity, str) or not identity.isprintable() or not 0 < len(identity) <= _LONGEST_IDENTITY:
        raise ConfigError(
            f"the identity of the expert that {factory} returned is not one line of text",
            key=_KEY,
            hint="Return a string that names what the scores depend on, such as `keywords:v2`",
        )
    if identity.startswith(RECORDED):
        raise ConfigError(
            f"the identity of the expert that {factory} returned begins with {RECORDED!r}",
            key=_KEY,
            hint="Use another prefix: this one marks scores that came with the data",
        )
    return identity


def _check_score(score: object) -> ExpertScore:
    if not isinstance(score, ExpertScore):
        raise ExpertVerdictError(
            f"the expert returned a {type(score).__name__}, not an ExpertScore",
            hint="Return a ctd_guardrail.ExpertScore",
        )
    p_unsafe, attempts, tokens = score.p_unsafe, score.attempts, score.tokens
    if not isinstance(p_unsafe, Real) or not 0.0 <= float(p_unsafe) <= 1.0:
        raise ExpertVerdictError("the expert's score is not a probability", hint="Return a number in [0, 1]")
    # A negative number would give calls and tokens back to a cap.
    if not isinstance(attempts, int) or attempts < 1 or not isinstance(tokens or 0, int) or (tokens or 0) < 0:
        raise ExpertVerdictError(
            "the expert's attempts or tokens are not a count", hint="Return whole numbers of at least 0"
        )
    return ExpertScore(float(p_unsafe), attempts, tokens)
