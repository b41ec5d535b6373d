"""Data: sources of raw splits, the encoding cache, and batches."""
