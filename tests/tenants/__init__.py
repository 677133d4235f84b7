"""Tenants of django-tenants, for the sites of tests/test_tenants.py."""
