"""File formats: each describes the arrays of a file and reads them into buffers; another package places them."""
