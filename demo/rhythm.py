"""When people are active: shared by the generated past and the live traffic."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

ZONE = ZoneInfo("Europe/Paris")

# By local hour, as a share of the busiest: breakfast, lunch, and the evening peak. Somebody is
# always awake: a demo at night should show activity
HOURS = (
    0.20, 0.16, 0.15, 0.15, 0.15, 0.15, 0.20, 0.30, 0.55, 0.65, 0.68, 0.70,
    0.80, 0.72, 0.60, 0.58, 0.62, 0.70, 0.80, 0.90, 1.00, 0.95, 0.60, 0.32,
)  # fmt: skip

# By day of the week from Monday, as a share of the busiest: there are fewer visits at the weekend
WEEKDAYS = (0.95, 1.0, 1.0, 0.97, 0.9, 0.55, 0.5)


def activity(t: float) -> float:
    """How busy the site is at a unix time, from 0 to 1 for its busiest hour."""
    local = datetime.fromtimestamp(t, ZONE)
    return HOURS[local.hour] * WEEKDAYS[local.weekday()]
