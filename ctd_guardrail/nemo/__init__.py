"""The rail inside NVIDIA NeMo Guardrails.

Put ``import_paths: [ctd_guardrail/nemo]`` into a configuration: NeMo loads the flow of this folder and calls
``init`` of its ``config.py``. Nothing outside this folder knows NeMo, save the expert that runs one of its rails.
"""
