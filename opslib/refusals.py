"""An error of the Redis client → what it means to a person, with what to do about it."""

from __future__ import annotations

import errno
import re
import ssl
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass

from opslib import redact
from opslib.errors import BrokerRefused, BrokerUnreachable, NotABroker, OpsError, Refused

#: What a disk says that takes no more.
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO})
#: What redis-py says before it says what happened.
_PREAMBLE = re.compile(r"^Error -?\d+ connecting to \S+\s+")


@dataclass(frozen=True, slots=True)
class _Refusal:
    """
    One way in which a server or the way to it says no.

    Attributes:
        signs: Names of redis-py's exceptions, or what the server's words begin with, or, with a blank in it, hold: for
            Redis 6.2 quotes what a script was refused.

        says: The sentence; `{shown}` is the server, `{said}` its own words.

        over_tls: The hint for a rediss:// URL, if it is another one; empty: the same.
    """

    signs: tuple[str, ...]
    becomes: type[OpsError]
    says: str
    hint: str
    over_tls: str = ""

    def fits(self, kinds: AbstractSet[str], said: str) -> bool:
        """Whether an error of these kinds, which says that, is of this sort."""
        return any(sign in kinds or said.startswith(sign) or (" " in sign and sign in said) for sign in self.signs)


_FULL = _Refusal(
    ("OutOfMemoryError", "OOM", "-OOM", "command not allowed when used memory"),
    Refused,
    "{shown} is out of memory and takes no more writes; nothing of this was changed.",
    "Make room first: raise maxmemory, or expire results; workers cannot acknowledge either.",
)
#: The first that fits; what a server says beats the kind of exception that redis-py makes of it.
_KNOWN = (
    _Refusal(
        ("AuthenticationError", "AuthorizationError", "NOAUTH", "WRONGPASS"),
        BrokerRefused,
        "{shown} refused the credentials: {said}.",
        "Check user and password in the target's URL.",
    ),
    _Refusal(
        ("NoPermissionError", "NOPERM", "ACL failure in script", "can't run this command"),
        BrokerRefused,
        "{shown} does not permit what is needed: {said}.",
        "Give the user the rights listed in docs/safety.md.",
    ),
    _Refusal(
        ("SSLError", "[SSL", "certificate verify"),
        BrokerRefused,
        "TLS with {shown} failed: {said}.",
        "Check rediss:// against redis://, and ssl_ca_certs in the URL.",
    ),
    _Refusal(
        ("DB index",),
        BrokerRefused,
        "{shown}: the server has no such database.",
        "Check the number at the end of the URL.",
    ),
    _FULL,
    _Refusal(
        ("ReadOnlyError", "READONLY", "-READONLY "),
        Refused,
        "{shown} is a replica and takes no writes; nothing of this was changed.",
        "Name the master, or a Sentinel.",
    ),
    _Refusal(
        ("NOREPLICAS", "MISCONF", "-NOREPLICAS ", "-MISCONF "),
        Refused,
        "{shown} takes no writes: {said}.",
        "See to its replicas or its disk first.",
    ),
    _Refusal(
        ("BusyLoadingError", "LOADING"),
        BrokerUnreachable,
        "{shown} is loading its data.",
        "Wait until it has loaded, then run this again.",
    ),
    _Refusal(
        ("BUSY",),
        BrokerUnreachable,
        "{shown} is busy with a script and answers nobody.",
        "`SCRIPT KILL` ends a script that has not written.",
    ),
    _Refusal(
        ("max number of clients",),
        BrokerUnreachable,
        "{shown} has no connection to spare: {said}.",
        "Raise maxclients, or end clients that leak connections (`CLIENT LIST`).",
    ),
    _Refusal(
        ("TimeoutError",),
        BrokerUnreachable,
        "{shown} did not answer in time.",
        "Is this port TLS (rediss://)? Is a firewall in between, or the server stopped?",
        over_tls="Is this port without TLS (redis://)? Is a firewall in between, or the server stopped?",
    ),
    _Refusal(
        ("reset by peer", "closed by server"),
        BrokerUnreachable,
        "{shown} closed the connection: {said}.",
        "Does this port speak TLS (rediss://)?",
        over_tls="Is this port without TLS (redis://)?",
    ),
    _Refusal(
        ("InvalidResponse", "Protocol error", "Invalid RESP version", "Bulk string length"),
        NotABroker,
        "{shown} answers, but not as Redis does: {said}.",
        "Is another program listening on this port?",
    ),
    _Refusal(("ConnectionError",), BrokerUnreachable, "{shown} cannot be reached: {said}.", BrokerUnreachable.hint),
    _Refusal(("RedisError", "OSError"), BrokerUnreachable, "{shown}: {said}.", BrokerUnreachable.hint),
)


@contextmanager
def explained(shown: str) -> Iterator[None]:
    """
    Let no error of the client out of a `with` block but as what it means.

    Raises:
        OpsError: In place of an error of the client or the network.
    """
    try:
        yield
    except Exception as error:
        raise of(error, shown) from error


def of(error: BaseException, shown: str) -> OpsError:
    """
    Return what an error of the client means; one of our own comes back as it is.

    Args:
        shown: The server's URL, fit to be shown.

    Raises:
        BaseException: The error itself, if it is neither the client's nor the network's: then it is a defect.
    """
    if isinstance(error, OpsError):
        return error
    if isinstance(error, OSError) and error.errno in _DISK:  # the network has no such errors
        return Refused(
            f"This machine's disk takes no more: {error.strerror}.",
            hint="Make room, or set OPS_REPORTS to another folder.",
        )
    said = _said(error)
    cause = error.__cause__ or error.__context__
    kinds = _kinds(error)
    over_tls = shown.startswith("rediss:")
    # A file of the TLS options that is not there looks like a server that is not.
    if isinstance(cause, ssl.SSLError) or (over_tls and isinstance(cause, FileNotFoundError | PermissionError)):
        kinds.add("SSLError")
    for refusal in _KNOWN:
        if refusal.fits(kinds, said):
            hint = (over_tls and refusal.over_tls) or refusal.hint
            return refusal.becomes(refusal.says.format(shown=shown, said=said), hint=hint)
    raise error


def is_full(error: BaseException) -> bool:
    """Whether a server refused something only because it is out of memory."""
    return _FULL.fits(_kinds(error), _said(error))


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _said(error: BaseException) -> str:
    """Return what happened, without what the client says before it."""
    return _PREAMBLE.sub("", redact.plain(error)).rstrip(".") or type(error).__name__
