"""One script per theory, read top to bottom like a paper's appendix; `python -m derivations` writes code and text."""
