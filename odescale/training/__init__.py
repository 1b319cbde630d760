"""Real training: teacher tasks, exact initial overlaps, plain SGD with seeds in parallel, checkpoints."""
