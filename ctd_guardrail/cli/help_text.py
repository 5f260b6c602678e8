"""The help texts of commands, from their docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import typer

__all__ = ["add_commands", "join_lines"]


def add_commands(app: typer.Typer, *commands: Callable[..., None]) -> None:
    """Add commands to an app, in this order. A command's docstring is its help text."""
    for command in commands:
        app.command(help=join_lines(command.__doc__ or ""))(command)


def join_lines(text: str) -> str:
    """Join the lines of each paragraph, so that a terminal of any width breaks them where it ends.

    Typer keeps the line breaks of all paragraphs but the first. A paragraph that starts with markup, such as
    ``[dim]``, holds examples: it keeps its lines.
    """
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(each if each.startswith("[") else each.replace("\n", " ") for each in paragraphs)
