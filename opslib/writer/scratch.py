"""A dump → a server of our own that has loaded it: loopback, a port and a password of its own, gone afterwards."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opslib import redact
from opslib.embedded import processes
from opslib.embedded import server as embedded

if TYPE_CHECKING:
    from redis import Redis

    from opslib.writer.dumps import Head

DUMP = "dump.rdb"
_NAME = "scratch"
_LOADED_WITHIN_S = 600.0
_LOOK_S = 0.05
#: Of the memory that is free here, a rehearsal may take so much.
_SHARE = 0.5
_VERSION = re.compile(r"v=(\d+(?:\.\d+)*)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scratch:
    """
    A server that has loaded a dump.

    Attributes:
        by: Program and version.

        took_s: How long it took until it answered.

        databases: Keys by database, as it counts them.
    """

    client: Redis
    by: str
    took_s: float
    databases: Mapping[int, int]


def room_for(used_bytes: int) -> str:
    """Return why this machine has too little memory for a copy of a server's data; empty if it has enough."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return ""  # elsewhere nobody says; the server would be told no by the system
    if used_bytes <= free * _SHARE:
        return ""
    return f"The data take {used_bytes:,} bytes of memory, and here only {free:,} are free: not rehearsed here."


def programs(head: Head) -> list[tuple[str, Path]]:
    """Return the server programs of this machine with what they call themselves, those of the dump's kind first."""
    found = [Path(path) for name in ("redis-server", "valkey-server") if (path := shutil.which(name))]
    with suppress(embedded.ServerMissing):
        found.append(embedded.program())
    named = [(_version(path), path) for path in found]
    return sorted(named, key=lambda pair: ("valkey" in pair[0].lower()) is not head.valkey)


@contextmanager
def loaded(folder: Path, head: Head, database: int) -> Iterator[Scratch | str]:
    """
    Give a server that has loaded the dump of a folder for the time of a `with` block; or say why there is none.

    Each program that is installed is tried: an older one cannot read a newer dump.

    Args:
        folder: An existing folder of its own, with a copy of the dump.
    """
    said = []
    for number, (name, program) in enumerate(programs(head), 1):
        log = folder / f"{_NAME}-{number}.log"
        server = _launch(program, folder, log.stem, database)
        client = server.client()
        try:
            found = _until_loaded(client, server.child, name, log)
            if isinstance(found, Scratch):
                yield found
                return
            said.append(f"{name}: {found}")
        finally:
            client.close()
            server.stop()
    yield " ".join(said) or "No server program is installed here: install redis-server, or opslib[demo]."


def _version(program: Path) -> str:
    try:
        done = subprocess.run([str(program), "--version"], check=False, capture_output=True, timeout=5, text=True)
    except (OSError, subprocess.TimeoutExpired):
        return program.name
    number = _VERSION.search(done.stdout)
    kind = "Valkey" if "valkey" in done.stdout.lower() else "Redis"
    return f"{kind} {number[1]}" if number else kind


def _launch(program: Path, folder: Path, name: str, database: int) -> embedded.Server:
    password = secrets.token_urlsafe(24)
    redact.remember(f"redis://:{password}@127.0.0.1")
    lines = [f"dir {json.dumps(str(folder))}", f"dbfilename {DUMP}", "maxmemory 0", "databases 1024"]
    return embedded.launch(program, folder, name=name, password=password, database=database, lines=lines)


def _until_loaded(client: Redis, child: processes.Child, name: str, log: Path) -> Scratch | str:
    from redis import RedisError

    began = time.monotonic()
    while time.monotonic() - began < _LOADED_WITHIN_S:
        if child.process.poll() is not None:
            return _why(log)
        try:
            info: dict[str, Any] = client.info()
        except RedisError:
            info = {}
        if info.get("process_id") == child.pid and not info.get("loading"):
            counts = {int(db[2:]): int(each["keys"]) for db, each in info.items() if re.fullmatch(r"db\d+", db)}
            return Scratch(client=client, by=name, took_s=time.monotonic() - began, databases=counts)
        time.sleep(_LOOK_S)
    return "it did not load the dump within ten minutes."


def _why(log: Path) -> str:
    """Return why a server ended, out of its log: what stands before the last word."""
    lines = processes.tail(log, 20).splitlines()
    said = [line.partition(" # ")[2] for line in lines]
    said = [line for line in said if line and "WARNING" not in line and not line.startswith("Fatal error")]
    said += [line.partition("] ")[2] for line in lines if line.startswith("[offset") and "error" in line.lower()]
    said += [line.partition("] ")[2] for line in lines if line.startswith("[offset") and "EOF" in line]
    return f"it could not load the dump ({redact.plain(said[-1])[:200].rstrip('.')})." if said else "it ended."
