"""From the command line to a checked configuration; imports neither torch nor a part."""
