"""A run's examples: put into memory once per host, checked, split and measured."""
