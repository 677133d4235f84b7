"""A small Django site that remembers when its users were active, and people who use it."""
