"""The Celery app of the demo's shop: its tasks, healthy and broken; only its workers and its supervisor import it."""

# ruff: noqa: ARG001 - a task has the arguments that its message would carry, used or not

from __future__ import annotations

import os
import signal
import time
from typing import Any

from celery import Celery, Task, group
from celery.exceptions import Reject

from opslib.demo import ledger
from opslib.demo.faults import KEPT_S
from opslib.demo.notes import note
from opslib.worker import capture, checkpoint


class Booked(Task):  # type: ignore[type-arg]  # which is generic for mypy alone
    """A task that writes into its row that it is done, where it has one: whoever sent it wrote that."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever a task takes and returns
        """Run it; its result is stored after that."""
        result = self.run(*args, **kwargs)
        ledger.close(str(self.request.id))
        return result


app: Celery[Task[Any, Any]] = Celery(
    "shop", broker=os.environ["DEMO_BROKER_URL"], backend=os.environ["DEMO_BROKER_URL"], task_cls=Booked
)
app.conf.update(
    result_extended=True,
    result_expires=KEPT_S,
    task_track_started=True,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    # So long a process that was killed is missed before its task counts as lost; Celery's default is ten seconds.
    worker_lost_wait=0.3,
)
if client_name := os.environ.get("DEMO_CLIENT_NAME"):
    app.conf.update(broker_transport_options={"client_name": client_name}, redis_client_name=client_name)

for url in (app.conf.broker_read_url, app.conf.broker_write_url, app.conf.result_backend):
    if url != os.environ["DEMO_BROKER_URL"]:
        # CELERY_BROKER_URL and its like win over the app; the demo's faults must not reach the broker they name.
        raise RuntimeError("A CELERY_ variable of the environment would lead the demo to another broker.")

if "DEMO_KEEPS_NO_LETTERS" not in os.environ:
    capture(app, expired=True)


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
    """Healthy: every fifth order meets a busy mail server once or twice, then goes out, and all of that is noted."""
    time.sleep(0.02)
    if order % 5 == 0 and self.request.retries < 1 + order % 2:
        note(str(self.request.id), 50, f"order {order}: the mail server is busy, attempt {self.request.retries + 1}")
        raise self.retry(exc=MailServerBusy("421 try again later"), countdown=1)
    if order % 5 == 0:
        note(str(self.request.id), 100, f"order {order}: the receipt is out")
    return f"receipt {order}"


@app.task(name="shop.render_report", acks_late=True)
def render_report(month: str) -> str:
    """Acknowledged when it is done, so it survives its worker; takes DEMO_REPORT_S seconds."""
    time.sleep(float(os.environ.get("DEMO_REPORT_S", "0.1")))
    return f"report {month}"


@app.task(name="shop.transcode_video", bind=True)
def transcode_video(self: Task[Any, Any], video: int, length_s: float) -> str:
    """Acknowledged when it starts, so it is lost with its worker; its result stays STARTED."""
    note(str(self.request.id), 10, f"video {video}: the first pass begins")
    ledger.set_agent("busy", str(self.request.id))
    time.sleep(length_s)
    ledger.set_agent("idle")
    return f"video {video}"


@app.task(name="shop.sync_inventory", bind=True)
def sync_inventory(self: Task[Any, Any], supplier: str) -> None:
    """Hang for ever, as one does that waits for a socket without a timeout; its progress stays where it is."""
    note(str(self.request.id), 40, f"{supplier}: asking for page 5 of 12")
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


@app.task(name="shop.notify_supplier", bind=True, max_retries=2)
def notify_supplier(self: Task[Any, Any], order: int) -> None:
    """Fail three times at a supplier that refuses connections, and then for good."""
    try:
        _ask_supplier(order)
    except ConnectionError as error:
        raise self.retry(exc=error, countdown=0.1) from error


def _ask_supplier(order: int) -> None:
    raise ConnectionRefusedError(111, f"Connection refused by supplier-{order % 3}.example:443")


@app.task(name="shop.book_order")
def book_order(order: int) -> str:
    """Fail since the last release, which looks for a name that orders do not have."""
    booking = {"order": order, "total": 4200}
    return f"order {order} in {booking['currency']}"


@app.task(name="shop.apply_discount")
def apply_discount(order: int, percent: int) -> str:
    """Healthy; one of its senders forgets an argument."""
    return f"order {order}, {percent} % off"


@app.task(name="shop.reserve_stock")
def reserve_stock(order: int) -> None:
    """Reject its message: the article is not sold any more."""
    raise Reject("the article is not sold any more", requeue=False)


@app.task(name="shop.print_poster")
def print_poster(order: int) -> None:
    """End the process that runs it, as the kernel does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="shop.export_orders")
def export_orders(year: int) -> None:
    """Take longer than its message allows."""
    time.sleep(1800)


@app.task(name="shop.send_offer")
def send_offer(customer: int) -> str:
    """Healthy; the demo sends it with a time that has passed."""
    return f"offer {customer}"


@app.task(name="shop.import_catalogue", bind=True)
def import_catalogue(self: Task[Any, Any], catalogue: str, pages: int) -> str:
    """Read a catalogue page by page, and lose the connection half-way: once gone on with, it comes to its end."""
    state = checkpoint(self)
    for page in range(state.get("pages", 0), pages):
        if page == pages // 2 and not state.is_resumed:
            if catalogue == "damaged":
                state.give_up("the catalogue's file is damaged")
                raise ValueError(f"page {page} cannot be read")
            raise ConnectionResetError(104, "Connection reset by catalogues.example:443")
        time.sleep(0.01)
        state.save(progress=(page + 1) / pages, pages=page + 1)
    return f"catalogue of {pages} pages"


@app.task(name="shop.signals.send_signal")
def send_signal(instance_id: int, model: str, action: str) -> str:
    """Healthy and quick: whoever cares for orders is told of one."""
    return f"{model} {instance_id}: {action}"


@app.task(name="shop.hooks.deliver_hook", track_started=False)
def deliver_hook(hook_id: int, retry: bool) -> str:  # noqa: FBT001 - as it stands in its row
    """Tell a customer's server; whatever one answers is no error, and one of them is slow to answer at first."""
    url, is_retried = ledger.try_hook(hook_id)
    if "slow" in url and not is_retried:
        time.sleep(1800)
    delivered, answer = _answer(url)
    ledger.answer_hook(hook_id, delivered=delivered, answer=answer)
    return answer


def _answer(url: str) -> tuple[bool | None, str]:
    if "gone" in url:
        return False, "404 from its receiver, after which nobody tried again."
    if "later" in url:
        return None, "202 from its receiver, who never says more."
    return True, "200 from its receiver."


@app.task(name="shop.pages.count_view", ignore_result=True)
def count_view(page: str) -> None:
    """Healthy and quick; keeps no result."""


def receipt_after_notice(order: int, queue: str) -> str:
    """Publish a chain whose first task fails, and return that one's id: the receipt would follow it."""
    first = notify_supplier.si(order).set(queue=queue)
    made = first.freeze()
    (first | send_receipt.si(order + 1).set(queue="emails")).apply_async()
    return str(made.id)


def summary_of_notice(order: int, queue: str) -> str:
    """Publish a chord of which one task fails, and return that one's id: its body waits for it."""
    first = notify_supplier.si(order).set(queue=queue)
    made = first.freeze()
    receipts = [send_receipt.si(order + number).set(queue="emails") for number in (1, 2)]
    (group(first, *receipts) | send_receipt.si(order).set(queue="emails")).apply_async()
    return str(made.id)
