"""Files for Grafana. When installed, this package is souvenirs_metrics.grafana."""
