"""Starts runs as processes: mpirun's command line and output, one supervised start, cleanup, and the doctor."""
