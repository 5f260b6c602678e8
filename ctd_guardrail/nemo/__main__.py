"""``python -m ctd_guardrail.nemo``: the command line of NeMo Guardrails, with the rail known to its IORails engine."""

from nemoguardrails.cli import app

from ctd_guardrail.nemo.iorails import install

if __name__ == "__main__":
    install()
    app()
