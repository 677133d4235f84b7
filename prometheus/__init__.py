"""Files for Prometheus. When installed, this package is souvenirs_metrics.prometheus."""
