"""Internal. The command ``ctd-calibrate``, one file for each subcommand."""
