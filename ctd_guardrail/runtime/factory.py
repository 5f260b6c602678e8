"""Calls the function that an operator's configuration names. No artefact of a calibration can name one."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

from ctd_guardrail.errors import ConfigError, CtdError

__all__ = ["Factory", "place_of"]


@dataclass(frozen=True, slots=True)
class Factory:
    """A function of the operator, and its keyword arguments.

    Attributes:
        name: ``package.module:function`` or ``/path/to/file.py:function``.
        options: The keyword arguments.
    """

    name: str
    options: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Equal for two factories that make the same."""
        return json.dumps([self.name, self.options], sort_keys=True)

    def __call__(self, *arguments: object, section: str) -> object:
        """Import the function and return what it makes.

        Args:
            arguments: Positional arguments of the function.
            section: Key of the section that names the function, for error messages.

        Raises:
            ConfigError: The function cannot be imported or called, or it raised an exception.
            CtdError: The function raised this error itself.
        """
        key = f"{section}.factory"
        function = _find(self.name, key)
        try:
            inspect.signature(function).bind(*arguments, **self.options)
        except TypeError as error:
            raise ConfigError(
                f"{self.name} does not take these options ({error})",
                key=f"{section}.options",
                hint="Give each parameter of the function a value here, and no other name",
            ) from error
        except ValueError:  # a function of a compiled extension: the call itself shows whether the arguments fit
            pass
        try:
            return function(*arguments, **self.options)
        except CtdError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{self.name} raised {type(error).__name__} at {place_of(error)}", key=key, hint="Correct the function"
            ) from error


def place_of(error: BaseException) -> str:
    """Return the file and line that raised an exception. Its message stays out: it may quote a text or a secret."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"


def _find(factory: str, key: str) -> Callable[..., object]:
    place, _, name = factory.rpartition(":")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{factory} cannot be imported: there is no module {error.name!r}",
            key=key,
            hint="Install its package into this environment, or write file.py:function for a file in this folder",
        ) from error
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no file {place}", key=key, hint="Give its path, starting from the configuration's folder"
        ) from error
    except Exception as error:
        raise ConfigError(
            f"{factory} cannot be imported: {type(error).__name__} at {place_of(error)}",
            key=key,
            hint="Correct the module",
        ) from error
    try:
        function = reduce(getattr, name.split("."), module)
    except AttributeError as error:
        raise ConfigError(f"{place} has no {name!r}", key=key, hint="Name a function of the module") from error
    if not callable(function):
        raise ConfigError(f"{factory} is not callable", key=key, hint="Name a function or a class")
    return function


def _load_file(path: Path) -> ModuleType:
    """Run a file as a module under a name of its own, so that files of one name in two folders stay two modules."""
    name = f"ctd_factory_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # noqa: S101  # there is a loader for every *.py
    assert spec.loader is not None  # noqa: S101  # as above
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while it runs.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
