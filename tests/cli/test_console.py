"""How an error ends a command."""

from __future__ import annotations

import pytest
import typer

from ctd_guardrail.cli.console import exit_on_error
from ctd_guardrail.errors import DataError, InfeasibleBudgetError


def test_an_error_is_one_line_on_stderr_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, exit_on_error():
        raise DataError("label is missing [bold]", file="rows.jsonl", row=7, hint="Add it " + "x" * 200)
    out, err = capsys.readouterr()
    assert caught.value.exit_code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: rows.jsonl, row 7: label is missing [bold]. Add it")


def test_an_infeasible_budget_has_a_status_of_its_own() -> None:
    with pytest.raises(typer.Exit) as caught, exit_on_error():
        raise InfeasibleBudgetError("no", alpha=0.1, alpha_min=0.2, n_min=29)
    assert caught.value.exit_code == 3


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), exit_on_error():
        raise ZeroDivisionError
