"""Training: one loop, its schedule, its checkpoints, and the way from a folder to a run."""
