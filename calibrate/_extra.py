"""Imports of packages that only an extra installs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ctd_guardrail.errors import DependencyError

__all__ = ["needs_extra"]

# Name of the import -> name of the package.
_PACKAGES: Final = {"sklearn": "scikit-learn", "jinja2": "jinja2", "matplotlib": "matplotlib"}


@contextmanager
def needs_extra(purpose: str, *, extra: str = "calibrate") -> Iterator[None]:
    """Turn the failed import of an optional package into an error that names its extra.

    Args:
        purpose: What needs the package.
        extra: The extra that installs it.

    Raises:
        DependencyError: An optional package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = _PACKAGES.get((error.name or "").split(".")[0])
        if package is None:
            raise
        raise DependencyError(
            f"{purpose} needs {package}, which is not installed",
            hint=f"Run: pip install 'ctd-guardrail[{extra}]'",
        ) from error
