"""How an error ends a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer
from rich.console import Console
from rich.text import Text

from ctd_guardrail.errors import CtdError, InfeasibleBudgetError

__all__ = ["EXIT_BAD_INPUT", "EXIT_INFEASIBLE", "exit_on_error"]

EXIT_BAD_INPUT: Final = 2
EXIT_INFEASIBLE: Final = 3


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn this package's errors into one red line on stderr and an exit status.

    The status is 3 if the budget cannot be certified, and 2 for every other error. Other exceptions are bugs: they
    pass through with their traceback.
    """
    try:
        yield
    except CtdError as error:
        # No markup: a message may hold brackets from a file name or a key.
        Console(stderr=True).print(Text("error: ", style="bold red").append(str(error)), soft_wrap=True)
        status = EXIT_INFEASIBLE if isinstance(error, InfeasibleBudgetError) else EXIT_BAD_INPUT
        raise typer.Exit(status) from None
