"""Tests of ctd-guardrail; README.md says which folder tests what."""
