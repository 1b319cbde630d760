"""Derivation of the mean-field ODE of any finite-rank network: read `script.py` from top to bottom."""
