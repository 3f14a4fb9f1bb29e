"""Parts of headstart for a loop of one's own: plain PyTorch, Accelerate, Lightning."""
