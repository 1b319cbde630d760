"""Derivation of rollouts with a long tail, of speculation and of the drafter: read `script.py` from top to bottom."""
