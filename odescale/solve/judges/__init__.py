"""One judge per theory: from a system to the sizes of what its theory neglects, by name, for `odescale.solve.coverage`."""
