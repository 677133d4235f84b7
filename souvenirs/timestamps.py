"""Convert the site's datetimes to Unix seconds and back.

Inside the package, instants are seconds since 1970-01-01T00:00Z: no zone, no fold, and ordinary
arithmetic. Datetimes are aware if USE_TZ is True; if it is False, they are naive and in the site's
time zone, as everywhere on such a site.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from django.conf import settings

from souvenirs.conf import conf

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MICROSECOND = timedelta(microseconds=1)
YEARS = range(1900, 9999)  # the years that souvenirs may be in


def aware(when: datetime) -> datetime:
    """Return `when` with a time zone: a naive one is in the site's (its `fold` is respected).

    Raises TypeError for anything but a datetime.
    """
    if not isinstance(when, datetime):
        raise TypeError(f"expected a datetime, got {when!r}; for a date, combine it with a time")
    if when.tzinfo is None or when.utcoffset() is None:
        return when.replace(tzinfo=conf.zone)
    return when


def require_year(when: datetime) -> None:
    """Raise ValueError if `when` is outside YEARS.

    In the first and the last year that Python supports, days have no bounds in some zones, and a
    single souvenir from long ago would keep the roll-up busy with all the months since then.
    """
    if isinstance(when, datetime) and when.year not in YEARS:
        raise ValueError(f"{when!r} is not in the years {YEARS[0]} to {YEARS[-1]}")


def to_seconds(when: datetime) -> float:
    """Return the Unix time of `when`; a naive one is in the site's zone. Raises TypeError as
    `aware` does."""
    return (aware(when) - EPOCH) // MICROSECOND / 1_000_000


def to_utc(seconds: float) -> datetime:
    """Convert a Unix time to an aware datetime in UTC."""
    return EPOCH + timedelta(microseconds=round(seconds * 1_000_000))


def to_datetime(seconds: float) -> datetime:
    """Convert a Unix time to a datetime in the form that the site's models use: see `to_site`."""
    return to_site(to_utc(seconds))


def to_site(when: datetime) -> datetime:
    """Return `when` in the form that the site's models use: in UTC if USE_TZ is True, otherwise
    naive and local."""
    when = aware(when)
    zone = timezone.utc if settings.USE_TZ else conf.zone
    try:
        when = when.astimezone(zone)
    except OverflowError:  # datetime.min or .max, as a bound: nothing is beyond it in any zone
        when = when.replace(tzinfo=zone)
    return when if settings.USE_TZ else when.replace(tzinfo=None)
