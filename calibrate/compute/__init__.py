"""Internal. Workers in this process or on a Ray cluster, the cache, and progress bars."""
