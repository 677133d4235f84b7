"""Files for Prometheus: what souvenirs_metrics.prometheus is in an installed package."""
