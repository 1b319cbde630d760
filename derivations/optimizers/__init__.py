"""Derivation of the mean-field ODE under Adam, Muon, sign, Lion and clipping: read `script.py` from top to bottom."""
