"""Integration: one verb, `integrate`, the structure-preserving solver for spectra, and batches of parameters."""
