"""When the day's work is done, and from when on it is late: the schedule and the freshness policy agree."""

from datetime import timedelta
from typing import Final

import dagster as dg

# After the day has closed in New York (22:00 UTC at the latest) and in UTC. Every day of the week: a bar of Friday
# closes on Saturday at midnight, and some markets never close.
RETRAIN_CRON: Final = "30 0 * * *"
RETRAIN_ZONE: Final = "UTC"

# The schedule has nothing to do while markets are closed: three days over a weekend, which never warns, and five over
# Christmas or Easter, which never fails.
FRESHNESS: Final = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(days=5, hours=6), warn_window=timedelta(days=3, hours=6)
)
