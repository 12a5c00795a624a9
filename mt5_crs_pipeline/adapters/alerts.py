"""Alerts to people, through any service that apprise knows; each of them once a day."""

import logging
import re

from mt5_crs_pipeline.adapters.database import Database
from mt5_crs_pipeline.core.errors import PipelineError

_LOG = logging.getLogger(__name__)


def alert(database: Database, urls: str, key: str, title: str, body: str) -> bool:
    """Tell `title` and `body` to all `urls` (separated by commas or spaces); True when all of them took it.

    Nothing is sent without `urls`, or when an alert with `key` was sent in the last 24 hours, by whichever process.
    Never raises for an alert that cannot be sent: that is one warning in the log, which shows no URL.
    """
    if not urls.strip():
        return False
    try:
        return _is_first(database, key) and _send(urls, title, body)
    except PipelineError as error:
        _LOG.warning("alert %r was not sent: %s", title, error)
        return False


def _is_first(database: Database, key: str) -> bool:
    """Note that an alert is sent, in a transaction of its own that has ended before it is; False if it was already."""
    with database.connection() as connection, connection.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"alert {key}",))
        cursor.execute(
            "insert into alert (key) select %(key)s where not exists"
            " (select from alert where key = %(key)s and sent_at > clock_timestamp() - interval '24 hours')",
            {"key": key},
        )
        return cursor.rowcount == 1


def _send(urls: str, title: str, body: str) -> bool:
    import apprise

    # It writes addresses, and the passwords in them, into its log.
    apprise.logger.disabled = True
    receivers = apprise.Apprise()
    # An address may hold commas.
    understood = receivers.add(re.split(r"[\s,]+(?=\w+://)", urls.strip(", \t\n")))
    if len(receivers) and receivers.notify(body=body, title=title) and understood:
        return True
    _LOG.warning(
        "alert %r was not taken by all of MT5_CRS_ALERT_URLS: check their form, and whether they answer", title
    )
    return False
