"""Formats of arrays: one or several in a file, each a whole part of a data set."""
