"""The benchmark's modules are found as its scripts find them: in their own folder."""

import sys
from pathlib import Path

# At the end, so that nothing there hides a module of another package.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
