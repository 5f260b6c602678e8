"""The rail in the catalog from which NeMo's IORails engine takes its rails.

IORails runs no Colang and loads no actions of a configuration. It knows only the rails of its catalog, which NeMo
fills from its own library. :func:`install` adds this rail. It uses two private names of NeMo, and raises an error if
a version of NeMo does not have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, Final

from nemoguardrails import RailsConfig
from nemoguardrails.guardrails import compiled_rail
from nemoguardrails.manifests import (
    ActionRef,
    Binding,
    RailActions,
    RailCatalog,
    RailDirection,
    RailFlows,
    RailManifest,
    RailManifestRecord,
    RailMetadata,
    RailSpec,
    RailSurface,
    default_rail_catalog,
    registry,
)

from ctd_guardrail.assembly.folder import FLOW
from ctd_guardrail.errors import HostError

__all__ = ["ACTION_NAME", "changed", "install"]

ACTION_NAME: Final = "ctd_check_input"

_NAME: Final = "ctd_guardrail"
_SOURCE: Final = "ctd_guardrail.nemo"
_ACTION: Final = ActionRef(name=ACTION_NAME, target="ctd_guardrail.nemo.iorails:ctd_check_input")

_RAIL: Final = RailManifest(
    name=_NAME,
    metadata=RailMetadata(
        display_name="Calibrate-Then-Delegate",
        description="Screens inputs with probes, and asks an expert within a calibrated budget.",
        categories=("input",),
        capabilities=("allow", "block", "classify", "content_safety"),
    ),
    spec=RailSpec(
        flows=RailFlows(flow_names=(FLOW,)),
        actions=RailActions(refs=(_ACTION,)),
        surfaces=(
            RailSurface(
                name=FLOW,
                direction=RailDirection.INPUT,
                action=_ACTION,
                bindings=(Binding.context("user_message", "user_message"),),
            ),
        ),
    ),
    origin=_SOURCE,
)


def install(prepare: Callable[[RailsConfig], object]) -> None:
    """Add the rail to the catalog of this process. Calling it again changes nothing.

    Args:
        prepare: Called with each configuration that uses the rail, when an engine is built from it. An exception
            stops the start.

    Raises:
        HostError: This version of NeMo Guardrails keeps its catalog in another way.
    """

    def is_local(config: RailsConfig, params: Mapping[str, str]) -> bool:
        # NeMo asks here whether the packages of a rail must be installed. It is the only moment before the first
        # request at which a rail sees the configuration.
        del params
        prepare(config)
        return False

    hooks: Any = getattr(compiled_rail, "_LOCAL_BACKEND_CHECKS", None)
    if not isinstance(hooks, dict) or not hasattr(registry, "_catalog"):
        raise changed("keeps its rail catalog")
    hooks[_NAME] = is_local
    catalog = default_rail_catalog()
    if _NAME not in catalog.records:
        record = RailManifestRecord(manifest=_RAIL, source=_SOURCE)
        setattr(registry, "_catalog", RailCatalog([*catalog.records.values(), record]))  # noqa: B010  # private, see above
    if default_rail_catalog().owner_for_flow(FLOW) != _NAME:
        raise changed("keeps its rail catalog")


def changed(what: str) -> HostError:
    """Return the error for a version of NeMo Guardrails with different internals."""
    return HostError(
        f"NeMo Guardrails {version('nemoguardrails')} {what} in another way than 0.24",
        hint="Use its LLMRails engine or the sidecar, or a version of ctd-guardrail that knows it",
    )
