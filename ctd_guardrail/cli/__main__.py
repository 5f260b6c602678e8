"""``python -m ctd_guardrail.cli``: the command ``ctd-guardrail``."""

from ctd_guardrail.cli.app import app

app()
