"""The base of all other packages: errors, devices, the flat buffer, random numbers, files and kernels."""
