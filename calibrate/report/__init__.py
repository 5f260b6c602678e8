"""Internal. Documents about a policy: report with budget explorer, model card, record of reproducibility."""
