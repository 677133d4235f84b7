"""Measures how active the users of a Django site are."""

__version__ = "2.0.0"
