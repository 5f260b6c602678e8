"""NeMo's server for the configuration of this folder, for this machine only: ``python serve.py``.

``nemoguardrails server`` listens on every address of the machine and has no option for another one. A client could then
reach the server beside the gateway, without a key and with a principal of its own choice.
"""

import os
from pathlib import Path

os.environ["NEMO_GUARDRAILS_DISABLE_CHAT_UI"] = "true"  # the server reads it on import

import uvicorn
from nemoguardrails.server import api

FOLDER = Path(__file__).resolve().parent

api.app.rails_config_path = str(FOLDER)
api.set_default_config_id(FOLDER.name)  # clients of OpenAI's API send no `config_id`

if __name__ == "__main__":
    uvicorn.run(api.app, host="127.0.0.1", port=8010)
