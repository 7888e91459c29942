"""A model that has been trained: predictions, scores, files."""
