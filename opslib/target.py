"""One Celery deployment as data: where its parts are, what counts as wrong there, and what its application keeps."""

from __future__ import annotations

from typing import Annotated

import msgspec

from opslib import redact
from opslib.task_tables import StateRow, TaskTable

#: What stands for a task's id in the name of a key.
TASK_ID = "{task_id}"


class Thresholds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    When something counts as wrong; durations as text with a unit.

    Attributes:
        stuck_after: How long a task may be active.

        loop_after: Retries after which a task counts as looping.

        queue_depth: Messages that may wait in a queue; more are a backlog.

        scheduled_per_node: Tasks that a node may hold for their time to come.

        storm_after: Tasks of one name that may be retried at once; so many are a storm.

        storm_per_minute: Retries of one name in a minute; so many are a storm as well.

        dead_warn: Letters in one dead-letter list; so many are for attention.

        dead_critical: Letters in one dead-letter list, or of one cause; so many are critical.

        redis_memory: Memory that the server may use; so much is for attention.

        worker_memory: Memory that a node has, its limit as a container or a service; empty where nobody said.

        full_percent: Share of a limit (memory, connections) from which it counts as nearly used up.

        save_after: How old the server's last snapshot may be while changes are not saved.

        quarantine_after: How long what a run took out of circulation is kept in the broker.

        slow_command_ms: Milliseconds that a command may hold the server up.

        visibility_timeout: Only for a deployment whose nodes cannot be asked; empty means ask them.
    """

    stuck_after: str = "3h"
    loop_after: Annotated[int, msgspec.Meta(ge=1)] = 10
    queue_depth: Annotated[int, msgspec.Meta(ge=1)] = 10
    scheduled_per_node: Annotated[int, msgspec.Meta(ge=1)] = 10_000
    storm_after: Annotated[int, msgspec.Meta(ge=1)] = 20
    storm_per_minute: Annotated[int, msgspec.Meta(ge=1)] = 300
    dead_warn: Annotated[int, msgspec.Meta(ge=1)] = 10
    dead_critical: Annotated[int, msgspec.Meta(ge=1)] = 100
    redis_memory: str = "1GB"
    worker_memory: str = ""
    full_percent: Annotated[int, msgspec.Meta(ge=1, le=100)] = 80
    save_after: str = "24h"
    quarantine_after: str = "30d"
    slow_command_ms: Annotated[int, msgspec.Meta(ge=1)] = 100
    visibility_timeout: str = ""


class AppKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    A key that the application itself keeps for each task.

    Attributes:
        url: Its Redis database, with credentials; empty: the broker's own. Never printed, see `shown`.

        pattern: What it is called, with `{task_id}` once; neither a glob nor after the deployment's prefix.

        state: Whether it is JSON from which the task can go on (`ops task resume`).
    """

    pattern: str = ""
    url: str = ""
    state: bool = False

    def key(self, task_id: str) -> str:
        """Return the key of one task: its id is part of a name, whatever characters it has."""
        return self.pattern.replace(TASK_ID, task_id)

    def task_id(self, key: str) -> str:
        """Return the id of the task whose key this is."""
        head, _, tail = self.pattern.partition(TASK_ID)
        return key.removeprefix(head).removesuffix(tail)

    @property
    def shown(self) -> str:
        """The database's URL without password and query."""
        return redact.url(self.url) if self.url else "the broker's own database"


class TemporaryFolder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    Files that tasks leave behind on this machine when they fail.

    Attributes:
        folder: Absolute; only what is in it or below is ever looked at.

        pattern: Glob of the files' names.

        older_than: A file that was changed since is left alone.
    """

    folder: str = ""
    pattern: str = ""
    older_than: str = "24h"


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    One Celery deployment.

    Attributes:
        broker_url: With credentials; never printed, see `shown_broker`.

        result_backend: Empty: look for results in the broker's own database.

        environment: Name or id that the broker's stamp has to say (`ops config stamp`); empty: not checked.

        protected: Whether a change needs the target's name typed or `--confirm`.

        global_keyprefix: kombu's transport option of that name.

        result_keyprefix: The result backend's `global_keyprefix`.

        nodes: Names of the nodes that are expected to answer; empty: all that hear the question.

        queues: Queues that are looked at besides those that are found.

        app_keys: What the application keeps for each task, by the name that people have for it.

        beat_url: Redis database in which redbeat keeps its schedule; empty: the broker's own.

        database_url: The application's SQL database, with credentials; empty: it has none that is looked at.

        task_tables: Its tables with a row for each task, by the name that people have for them.

        state_rows: Its rows that say what it is at, by the name that people have for them.

        retention: How long results are kept, by the name or a glob of their task; "default" for the rest.

        temporary_files: Where tasks leave files on this machine, by the name that people have for it.

        origins: Where each value came from, for `ops config show`.
    """

    name: str
    broker_url: str
    result_backend: str = ""
    environment: str = ""
    protected: bool = False
    global_keyprefix: str = ""
    result_keyprefix: str = ""
    master_name: str = ""
    nodes: list[str] = []
    queues: list[str] = []
    app_keys: dict[str, AppKey] = {}
    beat_url: str = ""
    database_url: str = ""
    task_tables: dict[str, TaskTable] = {}
    state_rows: dict[str, StateRow] = {}
    retention: dict[str, str] = {}
    temporary_files: dict[str, TemporaryFolder] = {}
    thresholds: Thresholds = Thresholds()
    origins: dict[str, str] = {}
    warnings: list[str] = []

    @property
    def shown_broker(self) -> str:
        """The broker's URL without password and query."""
        return redact.url(self.broker_url)

    @property
    def shown_results(self) -> str:
        """The result backend's URL without password and query."""
        return redact.url(self.result_backend) if self.result_backend else "the broker's own database"

    @property
    def shown_database(self) -> str:
        """The SQL database's URL without driver, password and query."""
        scheme, _, place = redact.url(self.database_url).partition("://")
        return f"{scheme.partition('+')[0]}://{place}" if self.database_url else "none"
