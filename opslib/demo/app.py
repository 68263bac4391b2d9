"""The Celery app of the demo's shop: its tasks, healthy and broken; only its workers and its supervisor import it."""

# ruff: noqa: ARG001 - a task has the arguments that its message would carry, used or not

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, Task

app = Celery("shop", broker=os.environ["DEMO_BROKER_URL"], backend=os.environ["DEMO_BROKER_URL"])
app.conf.update(
    result_extended=True,
    task_track_started=True,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)
if client_name := os.environ.get("DEMO_CLIENT_NAME"):
    app.conf.update(broker_transport_options={"client_name": client_name}, redis_client_name=client_name)

for url in (app.conf.broker_read_url, app.conf.broker_write_url, app.conf.result_backend):
    if url != os.environ["DEMO_BROKER_URL"]:
        # CELERY_BROKER_URL and its like win over the app; the demo's faults must not reach the broker they name.
        raise RuntimeError("A CELERY_ variable of the environment would lead the demo to another broker.")


class MailServerBusy(Exception):
    """Raised by the mail server of the shop, now and then."""


class GatewayTimeout(Exception):
    """Raised by the payment gateway of the shop, always."""


@app.task(name="shop.resize_thumbnail", ignore_result=True)
def resize_thumbnail(image: int) -> None:
    """Healthy and quick; keeps no result."""
    time.sleep(0.02)


@app.task(name="shop.send_receipt", bind=True, max_retries=3)
def send_receipt(self: Task[Any, Any], order: int) -> str:
    """Healthy: every fifth order meets a busy mail server once or twice, then goes out."""
    time.sleep(0.02)
    if order % 5 == 0 and self.request.retries < 1 + order % 2:
        raise self.retry(exc=MailServerBusy("421 try again later"), countdown=1)
    return f"receipt {order}"


@app.task(name="shop.render_report", acks_late=True)
def render_report(month: str) -> str:
    """Acknowledged when it is done, so it survives its worker; takes DEMO_REPORT_S seconds."""
    time.sleep(float(os.environ.get("DEMO_REPORT_S", "0.1")))
    return f"report {month}"


@app.task(name="shop.transcode_video")
def transcode_video(video: int, length_s: float) -> str:
    """Acknowledged when it starts, so it is lost with its worker; its result stays STARTED."""
    time.sleep(length_s)
    return f"video {video}"


@app.task(name="shop.sync_inventory")
def sync_inventory(supplier: str) -> None:
    """Hang for ever, as one does that waits for a socket without a timeout."""
    while True:
        time.sleep(1)


@app.task(name="shop.charge_card", bind=True, max_retries=None)
def charge_card(self: Task[Any, Any], order: int) -> None:
    """Fail and retry for ever: quickly at first, so that the loop is there within seconds, then every 5 s."""
    raise self.retry(
        exc=GatewayTimeout("the payment gateway did not answer within 10 s"),
        countdown=0.3 if self.request.retries < 15 else 5,
    )


@app.task(name="shop.send_reminder")
def send_reminder(order: int) -> str:
    """Healthy in itself; the demo schedules it too far ahead."""
    return f"reminder {order}"


@app.task(name="shop.update_price", bind=True, max_retries=None)
def update_price(self: Task[Any, Any], article: int) -> None:
    """Fail because of its own code, and retry for ever all the same: quickly at first, then every ten minutes."""
    try:
        supplier: Any = None  # what the supplier answers since last night
        supplier["price"]
    except TypeError as error:
        raise self.retry(exc=error, countdown=0.3 if self.request.retries < 4 else 600) from error


@app.task(name="shop.print_invoice", ignore_result=True)
def print_invoice(order: int) -> None:
    """Healthy and slow: the printer takes a second for each."""
    time.sleep(1)
