"""Checkpoints that a run resumes from, written so that a crash at any moment leaves an intact one."""
