"""Timings on this machine: `python -m benchmarks [--device cpu|gpu] [--only NAME ...]`. No tests: slow is no failure."""
