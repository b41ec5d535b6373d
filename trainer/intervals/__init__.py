"""95 % intervals of the metrics of an evaluation."""
