"""Detection within a budget on real data, beside the methods of arXiv 2604.14251."""
