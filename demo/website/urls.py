from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.contrib.staticfiles.views import serve
from django.urls import include, path

from demo.population import PASSWORD
from demo.website import views

urlpatterns = [
    path("", views.home, name="home"),
    path("articles/", views.articles, name="articles"),
    path("articles/<slug:slug>/", views.article, name="article"),
    path("account/", views.account, name="account"),
    path("join/", views.join, name="join"),
    path("login/", LoginView.as_view(extra_context={"password": PASSWORD}), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("admin/", admin.site.urls),
    # the admin's static files, since DEBUG is off
    path("static/<path:path>", serve, {"insecure": True}),
    path("", include("souvenirs_metrics.urls")),
]
