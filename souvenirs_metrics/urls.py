"""URLs of /metrics and /souvenirs/usage.json. Include them in a site's urls.py:
`path("", include("souvenirs_metrics.urls"))`."""

from django.urls import path

from souvenirs_metrics.views import metrics, usage_json

urlpatterns = [
    path("metrics", metrics, name="souvenirs-metrics"),
    path("souvenirs/usage.json", usage_json, name="souvenirs-usage"),
]
