"""Outputs for the events of a run: the screen, log files, metrics.jsonl, TensorBoard, and the HTML report."""
