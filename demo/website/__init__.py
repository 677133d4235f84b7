"""The site: pages, log-in, admin, and /metrics."""
