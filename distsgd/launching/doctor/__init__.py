"""What the doctor looks at: each rank's machine, the MPI beneath it, how fast both are, and what is wrong with them."""
