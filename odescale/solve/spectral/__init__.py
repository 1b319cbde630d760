"""One-pass SGD on a spectrum: exact recursion, log-rate ODE, bins, repeated passes."""
