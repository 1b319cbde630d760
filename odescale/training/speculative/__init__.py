"""Speculative decoding with real networks: lossless sampling, a target and its drafter, and the drafter under a moving target."""
