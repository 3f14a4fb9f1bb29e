"""The names of transformers, datasets and accelerate under headstart: what a script for these libraries imports."""
