"""Exposes the activity of a Django site's users to Prometheus."""
