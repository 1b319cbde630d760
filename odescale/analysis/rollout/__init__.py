"""Rollouts from one's own tables: accepted lengths, costs, which strategy at which batch, and what heuristics lose."""
