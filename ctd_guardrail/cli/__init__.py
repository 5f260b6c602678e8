"""The command `ctd-guardrail`: one file a subcommand. Internal."""
