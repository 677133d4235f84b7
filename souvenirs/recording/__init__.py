"""Record that a user was active: process memory, the shared cache, a row."""
