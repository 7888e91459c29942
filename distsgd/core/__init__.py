"""What everything else stands on: errors, devices, the flat buffer, random numbers, files and kernels."""
