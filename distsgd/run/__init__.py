"""A run's life: from what is asked, through its start, training and end, to what is saved."""
