"""Derivation of the compute-optimal frontier: read `script.py` from top to bottom."""
