"""What people read of a policy: the report with its budget explorer, the model card, and how to reproduce it."""
