"""Write the pictures, which are kept in the repository: python -m docs.pictures"""

from __future__ import annotations

from pathlib import Path

from docs.pictures import people
from docs.pictures.svg import COLORS, Picture

DIRECTORY = Path(__file__).parent
SHOWN = 13  # weeks
BUCKETS = (1, 2, 3, 5, 7, 10, 14, 21, 28)  # le of souvenirs_active_days


def growth(weeks: list[set[int]]) -> Picture:
    picture = Picture(720, 320, "Growth by week")
    base, scale, step, left = 220, 1.15, 50, 50
    for number, week in enumerate(people.growth(weeks)[-SHOWN:]):
        x, y = left + number * step, float(base)
        for change in ("retained", "resurrected", "new"):
            height = getattr(week, change) * scale
            y -= height
            picture.rect(x, y, step - 8, height, COLORS[change])
        picture.rect(x, base, step - 8, week.churned * scale, COLORS["churned"])
        active = week.retained + week.resurrected + week.new
        picture.text(x + step / 2 - 4, y - 5, f"{active}", "middle", style="small")
    picture.line(left - 6, base, left + SHOWN * step, base)
    picture.text(left - 10, base + 4, "0", "end", style="small")
    for number, (change, color) in enumerate(COLORS.items()):
        picture.rect(left + number * 120, 296, 12, 12, color)
        picture.text(left + 18 + number * 120, 306, change)
    picture.text(left + 4 * 120, 306, "above: active users of the week", style="small")
    return picture


def retention(weeks: list[set[int]]) -> Picture:
    cohorts = people.retention(weeks)[-SHOWN:]
    picture = Picture(720, 400, "Retention of weekly cohorts")
    width, height, left, top = 44, 24, 130, 40
    picture.text(left, 16, "weeks since the first one")
    for age in range(SHOWN):
        picture.text(left + age * width + width / 2, top - 8, f"{age}", "middle", style="small")
    for row, shares in enumerate(cohorts):
        y = top + row * height
        ago = SHOWN - 1 - row
        name = {0: "new in the last week", 1: "new a week before"}.get(
            ago, f"new {ago} weeks before"
        )
        picture.text(left - 8, y + 16, name, "end", style="small")
        for age, share in enumerate(shares):
            x = left + age * width
            picture.rect(x, y, width - 2, height - 2, COLORS["retained"], share * 0.85 + 0.05)
            picture.text(x + width / 2 - 1, y + 15, f"{share:.0%}", "middle", "cell")
        if len(shares) > 1:
            x = left + (len(shares) - 1) * width
            picture.mark(x, y, width - 2, height - 2)
    y = top + SHOWN * height + 20
    picture.mark(left, y - 12, 20, 14)
    picture.text(left + 28, y, "what the metrics say now, one age of each cohort: the last week")
    return picture


def active_days(active: list[set[int]]) -> Picture:
    users = people.active_days(active)
    picture = Picture(720, 260, "Users of 28 days by the number of days on which they were active")
    base, step, left = 200, 23, 50
    scale = 170 / max(users)
    first = 1
    for number, last in enumerate(BUCKETS):
        for days in range(first, last + 1):
            x, height = left + (days - 1) * step, users[days - 1] * scale
            color = COLORS["retained"] if number % 2 else COLORS["resurrected"]
            picture.rect(x, base - height, step - 4, height, color, 0.8)
            picture.text(x + step / 2 - 2, base + 15, f"{days}", "middle", style="small")
        first = last + 1
    picture.line(left - 6, base, left + 28 * step, base)
    average = sum(days * n for days, n in enumerate(users, 1)) / sum(users)
    picture.text(
        left, base + 34, "days of 28 with a visit; a colour for each bucket (le)", style="small"
    )
    picture.text(
        left, base + 52, f"{sum(users)} users, {average:.1f} active days on average", style="small"
    )
    return picture


def write(directory: Path) -> None:
    active = people.days()
    weeks = people.weeks(active)
    for name, picture in {
        "growth": growth(weeks),
        "retention": retention(weeks),
        "active-days": active_days(active),
    }.items():
        (directory / f"{name}.svg").write_text(f"{picture}")


if __name__ == "__main__":
    write(DIRECTORY)
