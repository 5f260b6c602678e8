"""One decision: the probes, the threshold, the expert, the merge; and one conversation of many turns. Internal."""
