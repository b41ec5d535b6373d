"""Answers of a trained model to rows without targets, as many as there are, in the order in which they come."""
