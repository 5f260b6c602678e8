"""Internal. Labelled conversations: reading, splitting, padding."""
