"""Examples and how they are drawn: sampling, augmentation, loading and sources."""
