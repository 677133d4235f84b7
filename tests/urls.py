from django.urls import include, path

urlpatterns = [path("", include("souvenirs_metrics.urls"))]
