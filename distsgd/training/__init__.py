"""The training loop: step, update, evaluation, early stopping and callbacks."""
