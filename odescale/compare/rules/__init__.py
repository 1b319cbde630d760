"""One sheet per theory: tolerances, what makes a run its experiment, what it neglects, what is outside it."""
