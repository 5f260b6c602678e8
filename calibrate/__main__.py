"""``python -m calibrate``: the command ``ctd-calibrate``."""

from calibrate.cli import app

app()
