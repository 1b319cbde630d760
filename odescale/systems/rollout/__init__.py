"""Rollouts with a long tail: lengths, costs of rounds, strategies by batch, the fluid ODE, and the drafter's slow map."""
