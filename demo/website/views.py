import time
from typing import Any

from django.conf import settings
from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import UserCreationForm
from django.core.cache import cache
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.safestring import mark_safe

import souvenirs.control
from demo.monitoring import PROMETHEUS_URL
from demo.rhythm import ZONE
from souvenirs.charts import Bar, Column, draw
from souvenirs.moment import read_windows
from souvenirs.reports import calendar_daily_usage, growth

ARTICLES = {
    "tides": ("Tides", "The sea comes in twice a day, and nobody has to remind it."),
    "lamps": ("Lamps", "A lamp in the window says that somebody is at home."),
    "maps": ("Maps", "A map leaves nearly everything out; that is what it is for."),
    "bells": ("Bells", "The bell of the church is four minutes late, and so is the village."),
    "ferries": ("Ferries", "The ferry waits for those who run, not for those who walk."),
}


KEPT_SECONDS = 10  # the age up to which the numbers of the front page are cached


def home(request: HttpRequest) -> HttpResponse:
    """The same page for everybody: it does not load the user."""
    return render(request, "home.html", cache.get_or_set("numbers", numbers, KEPT_SECONDS))


def numbers() -> dict[str, Any]:
    """The numbers of the site's users on the front page."""
    days = list(calendar_daily_usage(recent=30))
    *earlier, month = list(growth("month", recent=2))
    columns = [
        Column(
            name=f"{day['period']['start'].astimezone(ZONE):%-d %b}",
            hint=f"{day['labels']['calendar_date']}: {day['usage']['active_users']} users",
            above=(Bar("active", day["usage"]["active_users"]),),
            partial=not day["period"]["complete"],
        )
        for day in days
    ]
    title = "Active users of the last 30 days"
    chart = draw(columns, name="days", title=title, description="A column for each day.")
    file = settings.DIRECTORY / PROMETHEUS_URL
    return {
        "windows": {each.name: each.active for each in read_windows(time.time())},
        "month": month["growth"]["active_users"],
        "last_month": earlier[0]["growth"] if earlier else None,
        "axis": mark_safe(chart.axis),
        "plot": mark_safe(chart.plot),
        "prometheus": file.read_text() if file.exists() else None,
    }


def articles(request: HttpRequest) -> HttpResponse:
    return render(request, "articles.html", {"articles": ARTICLES})


def article(request: HttpRequest, slug: str) -> HttpResponse:
    if slug not in ARTICLES:
        raise Http404(f"There is no article {slug!r}")
    title, text = ARTICLES[slug]
    return render(request, "article.html", {"title": title, "text": text})


def join(request: HttpRequest) -> HttpResponse:
    form = UserCreationForm(request.POST or None)
    if form.is_valid():
        login(request, form.save())
        return redirect("articles")
    return render(request, "registration/join.html", {"form": form})


@login_required
def account(request: HttpRequest) -> HttpResponse:
    """Show when the reader was last here, which is what the site remembers."""
    seen = souvenirs.control.last_seen(request.user)
    return render(request, "account.html", {"last_seen": seen})
