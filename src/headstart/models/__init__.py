"""Models: loading checkpoints, and randomness that belongs to rows."""
