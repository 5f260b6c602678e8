"""From a configuration folder to a running guard."""
