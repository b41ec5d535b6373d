"""Files: written so that a crash leaves old or new, mapped without filling memory, and read without trust."""
