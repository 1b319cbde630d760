"""Laws of the loss under a learning-rate schedule: fitted, chosen, forecast, optimised."""
