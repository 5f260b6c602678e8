"""The ways into NeMo Guardrails, each with what a client sees behind it.

One module for each kind of entry point; :mod:`matrix.entry_points` holds what is common to all, and
``python tests/nemo/write_matrix.py`` writes the table of docs/nemo.md from it.
"""
