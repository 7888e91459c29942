"""Data sets are described here and read into buffers; another package places each array once per host."""
