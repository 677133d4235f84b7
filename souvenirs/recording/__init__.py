"""A user was active -> process memory, the shared cache, a row."""
