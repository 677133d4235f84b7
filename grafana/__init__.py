"""Files for Grafana: what souvenirs_metrics.grafana is in an installed package."""
