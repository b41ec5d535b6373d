"""Data: sources of raw splits, their encoding, and the plan of batches."""
