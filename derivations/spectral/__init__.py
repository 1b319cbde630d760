"""Derivation of one-pass SGD on any spectrum: read `script.py` from top to bottom."""
