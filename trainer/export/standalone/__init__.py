"""Files that are copied beside an artifact and run there without this package."""
