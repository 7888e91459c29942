"""A training loop of the user's own, made data-parallel: `DataParallel` and what it is built from."""
