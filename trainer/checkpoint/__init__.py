"""Checkpoints: what a run is resumed from, written so that a crash at any moment leaves an intact one."""
