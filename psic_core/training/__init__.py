"""Section 3.4: the alternating trainer, its data, recipes and checkpoints."""
