"""Derivation of full-batch descent at a tangent kernel: read `script.py` from top to bottom."""
