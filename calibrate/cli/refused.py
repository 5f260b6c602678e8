"""The option of the commands that ask the expert."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["AskRefusedAgain"]

AskRefusedAgain = Annotated[
    bool,
    typer.Option("--ask-refused-again", help="Ask again about rows that the expert refused in an earlier run."),
]
