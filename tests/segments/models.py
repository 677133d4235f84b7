"""What a site may know about its users: where they belong, and what they pay for.

Nothing cascades, so that deleting users takes as many queries as without these tables.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import models


def to(model: str, **options: Any) -> dict[str, Any]:
    return {"to": model, "on_delete": models.DO_NOTHING, "db_constraint": False, **options}


USER = settings.AUTH_USER_MODEL


class Organization(models.Model):
    slug = models.SlugField(unique=True)
    sector = models.CharField(max_length=20, null=True)  # noqa: DJ001

    def __str__(self) -> str:
        return self.slug


class Subscription(models.Model):
    """At most one per user."""

    PLANS = {"free": "Free", "pro": "Professional", "team": "Team"}

    user = models.OneToOneField(**to(USER, related_name="subscription"))
    organization = models.ForeignKey(**to("Organization", null=True))
    plan = models.CharField(max_length=20, choices=PLANS, null=True)  # noqa: DJ001
    seats = models.IntegerField(null=True)
    is_trial = models.BooleanField(null=True)
    features = models.JSONField(null=True)
    number = models.CharField(max_length=20, unique=True, null=True)  # noqa: DJ001

    def __str__(self) -> str:
        return f"{self.user_id} {self.plan}"


class Membership(models.Model):
    """Any number per user."""

    user = models.ForeignKey(**to(USER, related_name="memberships"))
    organization = models.ForeignKey(**to("Organization", null=True))
    role = models.CharField(max_length=20)
    token = models.CharField(max_length=20, null=True)  # noqa: DJ001

    class Meta:
        constraints = [models.UniqueConstraint(fields=["token"], name="segments_token")]

    def __str__(self) -> str:
        return f"{self.user_id} {self.role}"


class Club(models.Model):
    name = models.CharField(max_length=20, unique=True)
    members: Any = models.ManyToManyField(USER, through="ClubMember", related_name="clubs")

    def __str__(self) -> str:
        return self.name


class ClubMember(models.Model):
    user = models.ForeignKey(**to(USER, related_name="+"))
    club = models.ForeignKey(**to("Club"))

    def __str__(self) -> str:
        return f"{self.user_id} {self.club_id}"
