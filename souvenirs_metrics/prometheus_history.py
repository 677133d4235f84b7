"""Writes the gauges at past instants as OpenMetrics with timestamps.

Each source yields the times at which values of gauges changed: `replay` for rolling windows and
periods to date, `closed_periods` for periods that were over, `accounts_at_midnight` for accounts.
Between two changes, the lines repeat the earlier value.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import Metric

from souvenirs import periods
from souvenirs.conf import conf as souvenirs_conf
from souvenirs.history import accounts
from souvenirs.history.counting import first_recorded
from souvenirs.history.figures import read_figures
from souvenirs.models import Souvenir
from souvenirs_metrics.conf import conf
from souvenirs_metrics.families import (
    ACTIVATED_USERS,
    ACTIVE_DAYS,
    ACTIVE_USERS,
    CALENDAR_ACTIVE_USERS,
    CALENDAR_PERIOD_START,
    CALENDAR_SEGMENT_ACTIVE_USERS,
    GROWTH,
    LAST_SEEN,
    PREVIOUS_CALENDAR_ACTIVE_USERS,
    REGISTERED_USERS,
    RETENTION_COHORT,
    RETENTION_RETAINED,
    SEGMENT_ACTIVE_USERS,
    Family,
)
from souvenirs_metrics.readers.base import Families
from souvenirs_metrics.readers.closed_periods import families_of, series
from souvenirs_metrics.replay import Track, replay
from souvenirs_metrics.segments import present_members

HOUR = 3_600

# These change during the day. The others, most of the series, are written once an hour
AT_EACH_INSTANT = (ACTIVE_USERS, CALENDAR_ACTIVE_USERS, LAST_SEEN)
BY_SEGMENT = (SEGMENT_ACTIVE_USERS, CALENDAR_SEGMENT_ACTIVE_USERS)
ONCE_AN_HOUR = (
    CALENDAR_PERIOD_START,
    PREVIOUS_CALENDAR_ACTIVE_USERS,
    REGISTERED_USERS,
    ACTIVATED_USERS,
    GROWTH,
    RETENTION_COHORT,
    RETENTION_RETAINED,
    ACTIVE_DAYS,
)

Pairs = tuple[tuple[str, str], ...]  # labels


class Steps:
    """A value that changes at some times (unix seconds) and is constant in between."""

    def __init__(self) -> None:
        self.times, self.values = array("d"), array("d")

    def add(self, t: float, value: float) -> None:
        self.times.append(t)
        self.values.append(value)

    def at(self, instants: Iterable[int]) -> Iterator[float | None]:
        """The value at each of the ascending instants; None before the first change."""
        number, last = -1, len(self.times) - 1
        for instant in instants:
            while number < last and self.times[number + 1] <= instant:
                number += 1
            yield None if number < 0 else self.values[number]


class FamilyHistory:
    """The series of a family, grouped by their labels without `le`, in order of appearance."""

    def __init__(self) -> None:
        self.groups: dict[Pairs, dict[tuple[str, Pairs], Steps]] = defaultdict(dict)

    def add(self, t: float, metric: Metric) -> None:
        """Set the samples of the family from `t` on."""
        for sample in metric.samples:
            labels = tuple(sample.labels.items())
            group = self.groups[tuple(pair for pair in labels if pair[0] != "le")]
            group.setdefault((sample.name, labels), Steps()).add(t, sample.value)

    def lines(self, instants: range, labels: Mapping[str, str]) -> Iterator[str]:
        """The lines of one series after the other, in the order of time. The series of a histogram
        are written together, instant by instant, as OpenMetrics requires."""
        for group in self.groups.values():
            names = [
                f"{name}{{{','.join(f'{k}={quote(v)}' for k, v in (*labels.items(), *own))}}}"
                for name, own in group
            ]
            columns = zip(*(steps.at(instants) for steps in group.values()))
            for instant, values in zip(instants, columns):
                for name, value in zip(names, values):
                    if value is not None:
                        yield f"{name} {value:.15g} {instant}\n"


def openmetrics(
    instants: range,
    labels: Mapping[str, str],
    track: Track = iter,
    with_segments: bool = False,
) -> Iterator[str]:
    """The lines of all gauges that have a past, at these instants (unix seconds).

    labels: added to each series.
    track: wraps the sequence of the history's days in an iterable that reports progress. All days
        are read before the first line.
    with_segments: whether to write segments too, by the values that users have now.

    Gauges that change during the day are written at each instant, others once an hour (or at each
    instant, if these are more than an hour apart).
    """
    using = conf.database(Souvenir)
    recorded = first_recorded(using)
    found: dict[str, FamilyHistory] = defaultdict(FamilyHistory)
    members = present_members(conf.segments, using) if with_segments else None
    if recorded is not None:
        for source in (
            replay(instants, recorded, using, track, members),
            closed_periods(recorded, instants[-1], using),
            accounts_at_midnight(instants),
        ):
            for t, metrics in source:
                for metric in metrics:
                    found[metric.name].add(t, metric)
    full_hours = range(-(-instants.start // HOUR) * HOUR, instants.stop, HOUR)
    if instants.step > HOUR:
        full_hours = instants
    at_each_instant = AT_EACH_INSTANT + (BY_SEGMENT if with_segments else ())
    for families, times in ((at_each_instant, instants), (ONCE_AN_HOUR, full_hours)):
        for family in families:
            yield from header(family)
            yield from found[family.name].lines(times, labels)
    yield "# EOF\n"


def header(family: Family) -> Iterator[str]:
    metric = family.family()
    yield f"# HELP {metric.name} {metric.documentation}\n"
    yield f"# TYPE {metric.name} {metric.type}\n"


def closed_periods(recorded: float, until: float, using: str) -> Iterator[tuple[float, Families]]:
    """The gauges about each calendar period that ended by `until`, valid from its end on."""
    wanted = {
        name: series(name, tuple(periods_between(name, recorded, until))) for name in periods.NAMES
    }
    for name, figures in read_figures(wanted, using).items():
        for each in figures:
            known = {name: each.active} if recorded <= each.period.start else {}
            yield (
                each.period.end,
                [
                    PREVIOUS_CALENDAR_ACTIVE_USERS.family(known),
                    *families_of({name: each}),
                ],
            )


def periods_between(name: str, start: float, end: float) -> Iterator[periods.Interval]:
    """The calendar periods from the one that contains `start` to the last that ended by `end`."""
    period = periods.calendar_period(name, start, souvenirs_conf.zone)
    while period.end <= end:
        yield period
        period = periods.calendar_period(name, period.end, souvenirs_conf.zone)


def accounts_at_midnight(instants: range) -> Iterator[tuple[float, Families]]:
    """The totals at the beginning of each day; None if the user model has no date_joined."""
    first = periods.calendar_period("day", instants[0], souvenirs_conf.zone).start
    midnights = [first, *(day.end for day in periods_between("day", first, instants[-1]))]
    totals: Sequence[tuple[int | None, int | None]] = accounts.as_of_all(midnights, conf.database)
    for midnight, (registered, activated) in zip(midnights, totals):
        yield midnight, [REGISTERED_USERS.family(registered), ACTIVATED_USERS.family(activated)]


def quote(value: str) -> str:
    """A label value, quoted and escaped."""
    for character, replacement in {"\\": r"\\", "\n": r"\n", '"': r"\""}.items():
        value = value.replace(character, replacement)
    return f'"{value}"'
