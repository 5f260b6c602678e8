"""Connection to a Ray cluster, and a pool of actors that maps rows."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from calibrate.config.cluster import RayConfig
from ctd_guardrail.errors import ConfigError, DependencyError

__all__ = ["connect", "map_rows"]

# No usage reports, no progress bars of Ray's own, no backend messages.
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_BACKEND_LOG_LEVEL": "fatal"}


@contextmanager
def connect(config: RayConfig | None) -> Iterator[None]:
    """Hold a connection to the cluster. Without a configuration, or with an open connection, do nothing.

    Raises:
        DependencyError: ray is not installed.
        ConfigError: The cluster cannot be reached, or is too small.
    """
    if config is None:
        yield
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray.data  # noqa: PLC0415  # an extra
    except ModuleNotFoundError as error:
        raise DependencyError(
            "`run_on` needs ray, which is not installed", hint="Run: pip install 'ctd-guardrail[ray]'"
        ) from error
    # Ray's bars and banners would draw over our progress bars.
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    is_ours = not ray.is_initialized()
    if is_ours:
        _start(config)
    try:
        _check_size(config)
        yield
    finally:
        if is_ours:
            ray.shutdown()


def map_rows(
    config: RayConfig, worker: type, arguments: tuple[Any, ...], rows: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield the results of a pool of actors for rows, as they arrive, in any order.

    Args:
        config: The cluster; :func:`connect` holds the connection.
        worker: Class that maps a batch of one row to a batch of one row. A batch has one value under each name.
        arguments: Arguments of its constructor.
        rows: The rows: numbers, text and bytes.
    """
    import ray.data  # noqa: PLC0415  # an extra

    if not rows:
        return
    with warnings.catch_warnings():
        # Ray uses deprecated settings of its own.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\.")
        dataset = ray.data.from_items(list(rows), override_num_blocks=len(rows)).map_batches(
            worker,
            fn_constructor_args=arguments,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(config.actors, len(rows))),
            num_cpus=config.cpus_per_actor,
            num_gpus=config.gpus_per_actor,
        )
    yield from dataset.iter_rows()


def _start(config: RayConfig) -> None:
    import ray  # noqa: PLC0415  # an extra

    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if config.address == "local":
        options |= {"num_cpus": config.actors * config.cpus_per_actor, "include_dashboard": False}
    try:
        ray.init(address=config.address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {config.address!r} ({type(error).__name__})",
            key="run_on.address",
            hint="Start one with `ray start --head`, or write `address: local`",
        ) from error


def _check_size(config: RayConfig) -> None:
    """Refuse actors that do not fit the cluster. Ray would wait for them for ever."""
    import ray  # noqa: PLC0415  # an extra

    there = ray.cluster_resources()
    for resource, each in (("CPU", config.cpus_per_actor), ("GPU", config.gpus_per_actor)):
        if config.actors * each > there.get(resource, 0.0):
            raise ConfigError(
                f"{config.actors} actors of {each:g} {resource} do not fit: the cluster has {there.get(resource, 0):g}",
                key="run_on.actors",
                hint="Set fewer actors or fewer resources for each, or add machines",
            )
