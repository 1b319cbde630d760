"""The least risk at a given compute."""
