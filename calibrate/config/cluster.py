"""Cluster that computes activations and asks the expert: the section ``run_on`` of CALIBRATE.yml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["RayConfig"]


class RayConfig(BaseModel):
    """Actors of a Ray cluster that compute activations and ask the expert.

    Attributes:
        type: ``ray``.
        address: ``local`` starts Ray on this machine and ends it with the run; ``auto`` joins the cluster that this
            machine belongs to; ``HOST:PORT`` another one.
        actors: Number of actors. Each loads the base model, and later the expert if it is a local one.
        cpus_per_actor: Cores of each actor. Torch uses as many threads.
        gpus_per_actor: GPUs of each actor. With a fraction, several actors share one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    type: Literal["ray"]
    address: Annotated[str, Field(min_length=1)] = "local"
    actors: Annotated[int, Field(ge=1)] = 2
    cpus_per_actor: Annotated[int, Field(ge=1)] = 1
    gpus_per_actor: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
