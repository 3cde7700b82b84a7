"""Training: the Lightning module, the One Cycle schedule, and checkpoints."""
