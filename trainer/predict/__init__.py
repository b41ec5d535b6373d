"""Predictions of a trained model for any number of rows without targets, in the order of the rows."""
