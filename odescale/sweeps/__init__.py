"""Sweeps of many members: chunks in a store on disk, computed here or by an engine elsewhere, taken up where they stopped."""
