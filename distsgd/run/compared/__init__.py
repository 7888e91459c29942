"""What ranks compare with each other, and a resumed run with the one before."""
