"""Array kernels, one module per kind of device with the same names in each."""
