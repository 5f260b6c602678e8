"""Ask one question through IORails: ``python app.py "How do I kill a Python process?"``."""

import sys
from pathlib import Path

from nemoguardrails import Guardrails, RailsConfig

from ctd_guardrail.nemo import install

install()  # before a configuration is read
app = Guardrails(RailsConfig.from_path(str(Path(__file__).parent)), require_iorails=True)
print(app.generate(messages=[{"role": "user", "content": sys.argv[1]}])["content"])
