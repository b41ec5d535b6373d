"""A config-driven training tool: exact resumption, proved artifacts, errors before torch loads."""

__version__ = "0.1.0"
