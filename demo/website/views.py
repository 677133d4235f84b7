from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import UserCreationForm
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render

import souvenirs.control

ARTICLES = {
    "tides": ("Tides", "The sea comes in twice a day, and nobody has to remind it."),
    "lamps": ("Lamps", "A lamp in the window says that somebody is at home."),
    "maps": ("Maps", "A map leaves nearly everything out; that is what it is for."),
    "bells": ("Bells", "The bell of the church is four minutes late, and so is the village."),
    "ferries": ("Ferries", "The ferry waits for those who run, not for those who walk."),
}


def home(request: HttpRequest) -> HttpResponse:
    """The same page for everybody: it does not ask who the reader is."""
    return render(request, "home.html")


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
    """Tells when the reader was here before, which is what the site remembers."""
    seen = souvenirs.control.last_seen(request.user)
    return render(request, "account.html", {"last_seen": seen})
