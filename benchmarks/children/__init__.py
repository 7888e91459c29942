"""What the benchmarks start, a process (or a job of them) for each measurement, some with a peer's interpreter."""
