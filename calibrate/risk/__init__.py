"""Internal. Finite-sample guarantees: p-values, tests that control the family-wise error, and their procedures.

numpy and scipy only. The budget certificate itself is in :mod:`ctd_guardrail.policy.budget`, because the running rail
derives its threshold with it.
"""
