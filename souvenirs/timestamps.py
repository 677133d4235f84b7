"""Datetimes as the site writes them, to unix seconds and back.

Inside the package instants are seconds since 1970-01-01T00:00Z: no zone, no fold, and ordinary
arithmetic. Datetimes are aware where USE_TZ is True; where it is False they are naive and in the
site's time zone, as everywhere in such a site.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from django.conf import settings

from souvenirs.conf import conf

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MICROSECOND = timedelta(microseconds=1)
YEARS = range(1900, 9999)  # that souvenirs may be of


def aware(when: datetime) -> datetime:
    """`when` with a time zone: a naive one is taken to be in the site's (its `fold` is honoured).

    Raises TypeError for anything but a datetime.
    """
    if not isinstance(when, datetime):
        raise TypeError(f"expected a datetime, got {when!r}; for a date, combine it with a time")
    if when.tzinfo is None or when.utcoffset() is None:
        return when.replace(tzinfo=conf.zone)
    return when


def require_year(when: datetime) -> None:
    """Raise ValueError if `when` is outside the YEARS: in the first and the last year that Python
    knows, days have no bounds in some zones, and one souvenir of long ago would keep the roll-up
    busy with all the months since then."""
    if isinstance(when, datetime) and when.year not in YEARS:
        raise ValueError(f"{when!r} is not a time of the years {YEARS[0]} to {YEARS[-1]}")


def to_seconds(when: datetime) -> float:
    """Unix time of `when`, naive ones in the site's zone. Raises TypeError as `aware` does."""
    return (aware(when) - EPOCH) // MICROSECOND / 1_000_000


def to_utc(seconds: float) -> datetime:
    """The aware datetime, in UTC, of a unix time."""
    return EPOCH + timedelta(microseconds=round(seconds * 1_000_000))


def to_datetime(seconds: float) -> datetime:
    """The datetime of a unix time, in the form that the site's models hold: see `to_site`."""
    return to_site(to_utc(seconds))


def to_site(when: datetime) -> datetime:
    """`when` in the form that the site's models hold: UTC where USE_TZ, else naive and local."""
    when = aware(when)
    zone = timezone.utc if settings.USE_TZ else conf.zone
    try:
        when = when.astimezone(zone)
    except OverflowError:  # datetime.min or .max: a bound that nothing is beyond in any zone
        when = when.replace(tzinfo=zone)
    return when if settings.USE_TZ else when.replace(tzinfo=None)
