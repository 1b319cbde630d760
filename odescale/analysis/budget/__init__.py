"""What to train under budgets of compute, memory, data and time, and when to stop: the planner."""
