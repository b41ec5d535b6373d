"""The verbs, a module for each: its function `run(job, config)` gets the checked config, typed and as plain data."""
