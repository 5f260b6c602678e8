"""``python -m calibrate``: the command ``ctd-calibrate``."""

from calibrate.cli.app import app

app()
