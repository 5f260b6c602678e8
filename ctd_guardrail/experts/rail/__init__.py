"""An input rail of NeMo Guardrails as the expert. Internal."""
