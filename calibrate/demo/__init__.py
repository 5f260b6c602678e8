"""Internal. The demonstration: its own data set, an expert trained on it, and a tour of the method."""
