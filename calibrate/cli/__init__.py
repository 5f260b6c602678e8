"""The command `ctd-calibrate`: one file a subcommand."""
