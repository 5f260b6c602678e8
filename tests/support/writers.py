"""Other processes that write a policy folder."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["holding", "line", "start"]

_ROOT = Path(__file__).parents[2]
_HOLD = """
import sys
from pathlib import Path
from ctd_guardrail.runtime.lock import writing
with writing(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Run code in a process of its own."""
    return subprocess.Popen(  # noqa: S603  # the code of a test
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )


def line(process: subprocess.Popen[str]) -> str:
    """Return the next line that it prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Have another process write a folder until the block ends."""
    with start(_HOLD, folder) as process:
        try:
            assert line(process) == "held"
            yield process
        finally:
            process.kill()
