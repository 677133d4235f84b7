from django.apps import AppConfig


class SouvenirsMetricsConfig(AppConfig):
    name = "souvenirs_metrics"
    verbose_name = "Souvenirs metrics"

    def ready(self) -> None:
        from souvenirs_metrics import checks, instruments  # noqa: F401
        from souvenirs_metrics.conf import conf

        instruments.connect()
        if conf.register:
            from souvenirs_metrics.exposition import register

            register()
