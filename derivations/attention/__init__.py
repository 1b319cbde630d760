"""Derivation of infinite-context softmax transformers: read `script.py` from top to bottom."""
