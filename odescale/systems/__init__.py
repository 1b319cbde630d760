"""Systems: one final module per theory, with its parameters, state, vector field, observables and clock."""
