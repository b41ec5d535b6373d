"""The composition root: from a checked config to parts. Below it nothing knows of Hydra or of the config."""
