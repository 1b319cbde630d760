"""Derivation of peaked distributions and the one-third law: read `script.py` from top to bottom."""
