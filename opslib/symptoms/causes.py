"""The signature of an error → why a retry does not heal it; nothing where one may."""

from __future__ import annotations

import re

from opslib import signatures

_CODE = "the same code fails the same way each time"
_INPUT = "the same arguments fail the same way each time"
_ACCESS = "nobody gets a right by asking again"
#: Types of errors that are the same again when the same task runs again. Left out on purpose: what also comes of a
#: neighbour that is out of order for a while (JSONDecodeError, OSError, FileNotFoundError) or of a transaction that is
#: not committed yet (DoesNotExist, IntegrityError).
HOPELESS = {
    "TypeError": _INPUT,
    "ValueError": _INPUT,
    "ValidationError": _INPUT,
    "UnicodeDecodeError": _INPUT,
    "UnicodeEncodeError": _INPUT,
    "InvalidOperation": _INPUT,
    "ZeroDivisionError": _INPUT,
    "KeyError": "what is looked up is not in what the task was given",
    "IndexError": "what is looked up is not in what the task was given",
    "AttributeError": _CODE,
    "NameError": _CODE,
    "UnboundLocalError": _CODE,
    "AssertionError": _CODE,
    "NotImplementedError": _CODE,
    "RecursionError": _CODE,
    "SyntaxError": "the code of that node cannot be read until it is deployed anew",
    "IndentationError": "the code of that node cannot be read until it is deployed anew",
    "ImportError": "what is missing on that node is missing until it is installed or deployed",
    "ModuleNotFoundError": "what is missing on that node is missing until it is installed or deployed",
    "NotRegistered": "the node does not have that task until it is deployed anew",
    "ImproperlyConfigured": "the node's settings are the same each time",
    "EncodeError": "what the task gives back cannot be serialised, however often",
    "PicklingError": "what the task gives back cannot be serialised, however often",
    "ContentDisallowed": "the node does not accept that serialisation",
    "PermissionError": _ACCESS,
    "PermissionDenied": _ACCESS,
    "AuthenticationError": _ACCESS,
    "NoCredentialsError": _ACCESS,
    "Unauthorized": _ACCESS,
    "Forbidden": _ACCESS,
}
#: Of what a server answers, that which it answers again. Not among them, as they pass: 408, 409, 423, 425, 429.
_REFUSED = {
    400: "the server refuses the request itself",
    401: _ACCESS,
    402: _ACCESS,
    403: _ACCESS,
    404: "what is asked for is not there",
    405: "the server refuses the request itself",
    406: "the server refuses the request itself",
    410: "what is asked for is gone for good",
    413: "the server refuses the request itself",
    414: "the server refuses the request itself",
    415: "the server refuses the request itself",
    422: "the server refuses the request itself",
    451: _ACCESS,
}
_STATUS = re.compile(r"\b(4\d\d)\b")


def hopeless(signature: str) -> str:
    """
    Return why no retry heals an error; empty for one that may pass, and for one that nobody knows.

    A status of HTTP decides before the type does: many clients have one type for all of them.
    """
    found = _STATUS.search(signature)
    if found:
        return _REFUSED.get(int(found[1]), "")
    return HOPELESS.get(signatures.kind(signature), "")
