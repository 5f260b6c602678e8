"""Fuzz one target: `fuzz.py TARGET [options of libFuzzer]`."""

from __future__ import annotations

import sys
import tempfile

import atheris

with atheris.instrument_imports(include=["ctd_guardrail"]):
    from tests.fuzz.targets import TARGETS, WORDS


def main() -> None:
    name, *options = sys.argv[1:]
    with tempfile.NamedTemporaryFile("w", suffix=".dict", delete=False) as words:
        for word in WORDS:
            words.write('"' + "".join(f"\\x{byte:02x}" for byte in word.encode()) + '"\n')
    atheris.Setup([sys.argv[0], f"-dict={words.name}", *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
