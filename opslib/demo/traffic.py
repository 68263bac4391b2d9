"""A healthy shop's everyday messages, sent by a thread until it is stopped."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery import Celery

PAUSE_S = 0.2
#: Orders whose receipts are sent at once, so that there are finished results from the start.
FIRST = range(5000, 5012)
SCHEDULED_AHEAD_S = (300, 600, 900, 1200)
#: Replaces what has come due, so that the node always holds a few scheduled tasks, all within the visibility timeout.
SCHEDULE_EVERY_S = 240


class Traffic(threading.Thread):
    """Sends about ten messages a second: thumbnails, receipts of which some are retried, and too many invoices."""

    def __init__(self, app: Celery) -> None:
        super().__init__(name="traffic", daemon=True)
        self._app = app
        self._over = threading.Event()

    def send_first(self) -> list[str]:
        """Send what has to be there from the start, and return the ids of what will soon be done."""
        for ahead_s in SCHEDULED_AHEAD_S:
            self._receipt(ahead_s, countdown=ahead_s)
        return [self._receipt(order) for order in FIRST]

    def run(self) -> None:
        """Send until stopped; the server may refuse or be gone, and a message that is not sent is not missed."""
        scheduled_at = time.monotonic()
        for number in itertools.count(FIRST.stop):
            if self._over.wait(PAUSE_S):
                return
            with suppress(Exception):
                self._send(number)
                self._app.send_task("shop.print_invoice", (number,), queue="invoices")
                if time.monotonic() - scheduled_at > SCHEDULE_EVERY_S:
                    scheduled_at = time.monotonic()
                    self._receipt(number, countdown=SCHEDULED_AHEAD_S[-1])

    def stop(self) -> None:
        """Send no more, and wait a moment for the last message to be out."""
        self._over.set()
        if self.is_alive():
            self.join(timeout=1)

    def _send(self, number: int) -> None:
        if number % 2:
            self._app.send_task("shop.resize_thumbnail", (number,), queue="celery", ignore_result=True)
        else:
            self._receipt(number)

    def _receipt(self, order: int, countdown: float | None = None) -> str:
        return str(self._app.send_task("shop.send_receipt", (order,), queue="emails", countdown=countdown).id)
