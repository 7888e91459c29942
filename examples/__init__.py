"""The tutorials that distsgd grew from, as configurations to read; python -m examples.reproduce runs them."""
