"""Training: device, optimizers, checkpoints, and the loop."""
