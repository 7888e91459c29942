"""Optimizers, learning-rate schedules and regularization."""
