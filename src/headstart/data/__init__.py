"""Data: from any source to checked tables, tokens and batches."""
