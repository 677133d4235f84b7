"""Generates the dashboards: python -m grafana.generate"""
