"""Write the matrix of entry points into docs/nemo.md: ``python tests/nemo/write_matrix.py``."""

import re

from tests.nemo.matrix import chat, colang, colang2, iorails, processes, sidecar  # noqa: F401  # they fill the table
from tests.nemo.matrix.entry_points import markdown
from tests.nemo.matrix.servers import ROOT

PAGE = ROOT / "docs" / "nemo.md"

if __name__ == "__main__":
    marker = "<!-- table: entry points -->\n"
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(f"(?<={marker})(\\|.*\n)*", lambda _: markdown(), page), encoding="utf-8")
