"""Derivation of one pass of SGD on a pruned stream, and of the largest margin: read `script.py` from top to bottom."""
