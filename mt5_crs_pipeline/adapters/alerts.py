"""Alerts to people, through any service that apprise knows; each of them once a day."""

import logging
import re

from mt5_crs_pipeline.adapters.database import Database
from mt5_crs_pipeline.core.errors import PipelineError

_LOG = logging.getLogger(__name__)


def alert(database: Database, urls: str, key: str, title: str, body: str) -> bool:
    """Tell `title` and `body` to all `urls` (separated by commas or spaces); True when it was sent.

    Nothing is sent without `urls`, or when an alert with `key` was sent in the last 24 hours, by whichever process.
    What nobody took counts as not sent, and comes again with the next call. Never raises for an alert that cannot be
    sent: that is one warning in the log, which shows no URL.
    """
    if not urls.strip():
        return False
    try:
        with database.connection() as connection, connection.cursor() as cursor:
            # Held while it is sent. A process that dies in between is followed by one that says it again.
            cursor.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"alert {key}",))
            cursor.execute(
                "select from alert where key = %s and sent_at > clock_timestamp() - interval '24 hours'", (key,)
            )
            if cursor.rowcount or not _send(urls, title, body):
                return False
            cursor.execute("insert into alert (key) values (%s)", (key,))
            return True
    except PipelineError as error:
        _LOG.warning("alert %r was not sent: %s", title, error)
        return False


def _send(urls: str, title: str, body: str) -> bool:
    """Send to every address; True when one of them took it, for it would be told again to all."""
    import apprise

    # It writes addresses, and the passwords in them, into its log.
    apprise.logger.disabled = True
    receivers = apprise.Apprise()
    # An address may hold commas.
    understood = receivers.add(re.split(r"[\s,]+(?=\w+://)", urls.strip(", \t\n")))
    taken = [bool(receiver.notify(body=body, title=title)) for receiver in receivers]
    if not (understood and taken and all(taken)):
        _LOG.warning(
            "alert %r was not taken by all of MT5_CRS_ALERT_URLS: check their form, and whether they answer", title
        )
    return any(taken)
