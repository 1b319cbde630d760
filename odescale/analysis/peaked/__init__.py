"""Peaked targets: the one-third law, and what escapes from it."""
