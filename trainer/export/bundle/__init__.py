"""Modules that are copied next to an artifact and run there without this package and without torch."""
