"""Studies of what the training method is worth, with their notes; run from a checkout."""
