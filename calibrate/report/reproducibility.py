"""reproducibility.json: everything that is needed to make a policy again and to compare the result."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from calibrate.config.file import CalibrateConfig, PriceConfig
from ctd_guardrail.config.factory import FactoryConfig
from ctd_guardrail.config.validation import validate
from ctd_guardrail.policy.manifest import Manifest

__all__ = ["REPRODUCIBILITY_FILE", "read_prices", "write_reproducibility"]

REPRODUCIBILITY_FILE: Final = "reproducibility.json"


def write_reproducibility(
    folder: Path, manifest: Manifest, config: CalibrateConfig, *, command: Sequence[str] | None
) -> Path:
    """Write reproducibility.json and return its path.

    Args:
        folder: An existing folder; paths in the file start from it.
        manifest: Manifest of the policy.
        config: Configuration of the calibration.
        command: The command line; None if it was called from Python.
    """
    record = {
        "command": None if command is None else _relative(list(command), folder.resolve()),
        "created_at": manifest.created_at.isoformat(),
        "configuration": _relative(_without_code(config.model_dump()), folder.resolve()),
        "seed": manifest.calibration.seed,
        "data": [data.model_dump() for data in manifest.data],
        "fingerprint": manifest.fingerprint.model_dump(),
        "policy_tensors_sha256": manifest.tensors_sha256,
        "versions": manifest.versions,
        "host": _host(),
    }
    path = folder / REPRODUCIBILITY_FILE
    path.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path


def read_prices(folder: Path) -> PriceConfig | None:
    """Return the prices that a policy was calibrated with; None if its folder has none.

    Args:
        folder: Folder of the policy.

    Raises:
        ConfigError: The prices in the folder are not valid.
    """
    path = folder / REPRODUCIBILITY_FILE
    try:
        prices = json.loads(path.read_text(encoding="utf-8"))["configuration"]["prices"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if prices is None else validate(PriceConfig, prices, file=path, prefix="configuration.prices")


def _without_code(configuration: dict[str, Any]) -> dict[str, Any]:
    """Leave out which code of the operator ran, and with which options: no artefact names code."""
    sections = {
        key: {name: value for name, value in section.items() if name not in FactoryConfig.model_fields}
        for key in ("expert", "source")
        if (section := configuration[key]) is not None
    }
    return configuration | sections


def _host() -> dict[str, Any]:
    """Return properties that figures can depend on, without the name of the machine."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "implementation": platform.python_implementation(),
        "torch_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _relative(value: Any, folder: Path) -> Any:
    """Make absolute paths in JSON-able values relative to the folder, so that no home directory is published."""
    match value:
        case dict():
            return {key: _relative(item, folder) for key, item in value.items()}
        case list() | tuple():
            return [_relative(item, folder) for item in value]
        case Path() | str() if os.path.isabs(value):  # noqa: PTH117  # models are ids or paths, as strings
            return os.path.relpath(value, folder)
        case Path():
            return str(value)
        case _:
            return value
