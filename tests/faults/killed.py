"""Calibrations that are killed: a process that has imported everything forks one run after another.

Reads a line for each run from its input, seconds until the kill and the run's CALIBRATE.yml, and answers with
``killed`` or the exit status. A run of negative seconds is left alone.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
from typer.testing import CliRunner

from calibrate.cli.app import app
from calibrate.pipeline import run as pipeline  # noqa: F401  # imported once, before the forks
from calibrate.report import documents  # noqa: F401  # likewise

__all__ = ["main"]


def main() -> None:
    """Serve until the input ends."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        seconds, config = line.split(maxsplit=1)
        child = os.fork()
        if not child:
            result = CliRunner().invoke(app, ["run", config.strip(), "--json"])
            if result.exit_code:
                print(result.output, repr(result.exception), file=sys.stderr)  # noqa: T201  # shows why it failed
            os._exit(result.exit_code)
        print(_outcome(child, float(seconds)), flush=True)  # noqa: T201  # the answer


def _outcome(child: int, seconds: float) -> str:
    end = time.monotonic() + seconds
    while seconds < 0 or time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return str(os.waitstatus_to_exitcode(status))
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "killed"


if __name__ == "__main__":
    main()
