"""The demonstration: a data set of this package's own, an expert trained on it, and a tour of the method."""
