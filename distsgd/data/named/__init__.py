"""The data sets that have names: found, downloaded or computed, and described like those of any file."""
