"""Training logs as they lie on disk: every format read into one `TrainingLog`."""
