"""Internal. Activations of the rows, computed once and cached on disk."""

from calibrate.features.chunks import CHUNK
from calibrate.features.pooled import pool_activations
from calibrate.features.pooled_rows import PooledRows
from calibrate.features.tokens import collect_tokens

__all__ = ["CHUNK", "PooledRows", "collect_tokens", "pool_activations"]
