"""Internal. The grid of methods, budgets and figures on rows that nothing was fitted to, and its views.

``grid`` measures the cascade; ``record``, ``study`` and the budget explorer of ``calibrate.report`` are views of it.
"""
