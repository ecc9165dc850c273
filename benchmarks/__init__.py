"""``python -m benchmarks``: HepScale beside coffea's own executors, as ratios from one run."""
