"""Serves /metrics: `path("", include("souvenirs_metrics.urls"))` in a site's urls.py."""

from django.urls import path

from souvenirs_metrics.views import metrics

urlpatterns = [path("metrics", metrics, name="souvenirs-metrics")]
