"""The files of a run's folder, and who may write them."""
