"""What Celery sends by a crontab or by the sun, and an instant → the next instant that is meant."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from functools import cache
from typing import Any, cast
from zoneinfo import ZoneInfo

#: A date that does not come in so many days never comes: a Sunday that is 29 February does within forty years.
_FARTHEST_DAYS = 40 * 366


@dataclass(frozen=True, kw_only=True, slots=True)
class Crontab:
    """
    What Celery understands by a crontab.

    Attributes:
        days: Of the week, Sunday is 0. Unlike in cron, a day has to fit both fields.

        times: Of each such day, in order.
    """

    months: AbstractSet[int]
    dates: AbstractSet[int]
    days: AbstractSet[int]
    times: tuple[time, ...]

    def fits(self, day: datetime) -> bool:
        """Whether it means any time of this day."""
        return day.month in self.months and day.day in self.dates and day.isoweekday() % 7 in self.days

    def after(self, instant: datetime, zone: ZoneInfo) -> datetime | None:
        """Return the next instant that it means, later than this one; None if there is none."""
        local = instant.astimezone(zone).replace(tzinfo=None)
        day = local.replace(hour=0, minute=0, second=0, microsecond=0)
        # A minute that has begun is not meant again.
        at = bisect_right(self.times, local.time())
        for _ in range(_FARTHEST_DAYS):
            if at < len(self.times) and self.fits(day):
                return datetime.combine(day, self.times[at], zone)
            day, at = day + timedelta(days=1), 0
        return None


@cache
def read(minute: str, hour: str, day_of_month: str, month_of_year: str, day_of_week: str) -> Crontab:
    """
    Return what these fields mean, as Celery reads them.

    Raises:
        ValueError: If Celery cannot read them.
    """
    from celery.schedules import ParseException, crontab

    try:
        found: Any = crontab(
            minute=minute,
            hour=hour,
            day_of_month=day_of_month,
            month_of_year=month_of_year,
            day_of_week=day_of_week,
        )
    except (ParseException, LookupError, TypeError) as error:
        raise ValueError(str(error)) from None
    return Crontab(
        months=found.month_of_year,
        dates=found.day_of_month,
        days=found.day_of_week,
        times=tuple(sorted(time(each_hour, each_minute) for each_hour in found.hour for each_minute in found.minute)),
    )


def by_the_sun(event: str, latitude: float, longitude: float, after: datetime) -> datetime:
    """
    Return when the sun does that next, as Celery reckons it.

    Raises:
        ImportError: If `ephem` is not installed, by which Celery reckons it.
    """
    from celery.exceptions import ImproperlyConfigured
    from celery.schedules import solar

    try:
        reckoned = solar(cast("Any", event), latitude, longitude, nowfun=lambda: after)
    except ImproperlyConfigured as error:
        raise ImportError(str(error)) from None
    rest: timedelta = reckoned.remaining_estimate(after)
    return after + rest
