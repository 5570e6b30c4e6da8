"""Training runs: the run itself, its folder, its checkpoints."""
