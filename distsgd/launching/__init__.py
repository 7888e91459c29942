"""What distsgd.launch is made of: mpirun's command line and its words, one watched start, and the cleaning."""
