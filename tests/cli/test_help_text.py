"""The help texts of both commands: lines as long as the terminal allows, and examples on lines of their own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from rich.text import Text
from typer.testing import CliRunner

from calibrate.cli.app import app as calibrate_app
from ctd_guardrail.cli.app import app as guardrail_app
from ctd_guardrail.cli.help_text import join_lines

APPS = {"ctd-guardrail": guardrail_app, "ctd-calibrate": calibrate_app}
EXAMPLES = ("ctd-", "$ ctd-", "base: ")


def _commands() -> Iterator[tuple[str, str]]:
    for name, app in APPS.items():
        yield name, ""
        yield from ((name, command.callback.__name__) for command in app.registered_commands if command.callback)


def _help(app: str, command: str, columns: int) -> str:
    """Return what ``--help`` prints above the options."""
    arguments = [command, "--help"] if command else ["--help"]
    shown = CliRunner().invoke(APPS[app], arguments, env={"COLUMNS": str(columns)})
    assert shown.exit_code == 0, shown.output
    text, *panels = Text.from_ansi(shown.stdout).plain.partition("╭")
    assert panels[0], "no panel of options"
    return text


@pytest.mark.parametrize("columns", [80, 110])
@pytest.mark.parametrize(("app", "command"), list(_commands()))
def test_a_line_ends_where_the_next_word_does_not_fit(app: str, command: str, columns: int) -> None:
    shown = "\n".join(line.strip() for line in _help(app, command, columns).splitlines())
    paragraphs = [each.strip() for each in shown.split("\n\n")]
    prose = [each.splitlines() for each in paragraphs if not each.startswith(EXAMPLES)]
    assert len(prose) >= 2
    for lines in prose:
        for line, after in pairwise(lines):
            assert len(line) + 1 + len(after.split()[0]) > columns - 2, f"broken too early: {line!r}"


@pytest.mark.parametrize(
    ("app", "command", "lines"),
    [
        ("ctd-guardrail", "", ["ctd-guardrail validate config", "ctd-guardrail serve --config config"]),
        ("ctd-guardrail", "validate", ["ctd-guardrail validate config", "ctd-guardrail validate configs"]),
        ("ctd-calibrate", "run", ["budget: {alpha: 0.1, delta: 0.05}", "output: ./policy"]),
        ("ctd-calibrate", "threshold", ["$ ctd-calibrate threshold --scores scores.csv --alpha 0.1 --delta 0.05"]),
        ("ctd-calibrate", "recalibrate", ["$ ctd-calibrate recalibrate --policy policy --scores traffic.csv"]),
    ],
)
def test_examples_stand_on_lines_of_their_own(app: str, command: str, lines: list[str]) -> None:
    assert set(lines) <= {line.strip() for line in _help(app, command, 80).splitlines()}


def test_paragraphs_are_joined_and_examples_are_not() -> None:
    text = """First
    line.

    Some more
    prose.

    [dim]one
    two[/]
    """
    assert join_lines(text) == "First line.\n\nSome more prose.\n\n[dim]one\ntwo[/]"


@pytest.mark.parametrize("app", APPS)
def test_both_commands_offer_shell_completion(app: str) -> None:
    shown = CliRunner().invoke(APPS[app], ["--help"], env={"COLUMNS": "80"})
    assert "--install-completion" in Text.from_ansi(shown.stdout).plain
