"""Serves /metrics and /souvenirs/usage.json: `path("", include("souvenirs_metrics.urls"))` in a
site's urls.py."""

from django.urls import path

from souvenirs_metrics.views import metrics, usage_json

urlpatterns = [
    path("metrics", metrics, name="souvenirs-metrics"),
    path("souvenirs/usage.json", usage_json, name="souvenirs-usage"),
]
