"""Local exponents, phases of a loss curve, and the transition between them."""
