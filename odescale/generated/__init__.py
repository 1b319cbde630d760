"""Plain JAX written by `python -m derivations`; no sympy. Every file says in its header what wrote it."""
