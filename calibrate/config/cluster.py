"""Where the two long stages run: the section ``run_on`` of CALIBRATE.yml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ctd_guardrail.config.types import Count, Section, Text

__all__ = ["RayConfig"]


class RayConfig(Section):
    """Actors of a Ray cluster that compute activations and ask the expert."""

    type: Literal["ray"]
    """The kind of cluster: ``ray``."""
    address: Text = "local"
    """Cluster to use: ``local`` starts Ray on this machine and ends it with the run; ``auto`` joins the cluster of this
    machine; ``HOST:PORT`` joins another one."""
    actors: Count = 2
    """Number of actors. Each loads the base model, and later the expert if it is a local one."""
    cpus_per_actor: Count = 1
    """Cores of each actor; torch uses as many threads."""
    gpus_per_actor: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    """GPUs of each actor. A fraction lets several actors share one GPU."""
