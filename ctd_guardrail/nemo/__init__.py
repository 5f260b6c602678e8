"""The rail inside NVIDIA NeMo Guardrails.

- Colang 1.0: put ``import_paths: [ctd_guardrail/nemo]`` into a configuration. Colang 2.x: ``import ctd_guardrail.nemo``
  in ``main.co``. NeMo loads the flow of this folder and calls ``init`` of its ``config.py``.
- IORails: call :func:`install` before an engine is built, or put ``from ctd_guardrail.nemo import init`` into the
  ``config.py`` of a server of several configurations.

Nothing outside this folder knows NeMo, save the expert that runs one of its rails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctd_guardrail.nemo.iorails import install
    from ctd_guardrail.nemo.setup import init

__all__ = ["init", "install"]


def __getattr__(name: str) -> Any:
    # On first use: the command line reads configurations of NeMo without loading NeMo.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ctd_guardrail.nemo import setup  # noqa: PLC0415  # see above

    return getattr(setup, name)


def __dir__() -> list[str]:
    return sorted(__all__)
