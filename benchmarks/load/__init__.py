"""Throughput, latency and memory of the guard under traffic, measured and simulated."""
