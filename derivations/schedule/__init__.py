"""Derivation of laws of the loss under a learning-rate schedule: read `script.py` from top to bottom."""
