"""A range of bytes of an instance, on time."""
