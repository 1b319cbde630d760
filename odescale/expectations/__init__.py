"""Expectations over Gaussian tokens: exact field draws and Monte Carlo losses at finite context."""
