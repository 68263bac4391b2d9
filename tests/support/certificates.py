"""A folder → an authority of its own in it and certificates that it issues: good, expired, or for somebody else."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

LOOPBACK = "IP:127.0.0.1,DNS:localhost"

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """
    What a server shows, and who vouches for it.

    Attributes:
        authority: Certificate of the authority that issued this one.
    """

    path: Path
    key: Path
    authority: Path


def authority(folder: Path, name: str = "authority") -> Path:
    """Make an authority and return the path of its certificate; its key lies beside it."""
    path = folder / f"{name}.pem"
    _openssl(
        "req", "-x509", *_KEY, "-subj", f"/CN={name}", "-days", "2", "-keyout", path.with_suffix(".key"), "-out", path
    )
    return path


def issue(
    issuer: Path, name: str = "server", *, hosts: str = "IP:127.0.0.1,DNS:localhost", days: int = 2
) -> Certificate:
    """
    Issue a certificate beside its authority's.

    Args:
        hosts: For whom it is, as openssl writes it.

        days: How long it is good; negative for one that has expired.
    """
    path = issuer.with_name(f"{name}.pem")
    key, request, extensions = (path.with_suffix(suffix) for suffix in (".key", ".csr", ".ext"))
    extensions.write_text(f"subjectAltName={hosts}\n")
    _openssl("req", *_KEY, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
    vouched = ("-CA", issuer, "-CAkey", issuer.with_suffix(".key"), "-CAcreateserial", "-extfile", extensions)
    _openssl("x509", "-req", "-in", request, *vouched, "-days", str(days), "-out", path)
    return Certificate(path=path, key=key, authority=issuer)


def _openssl(*words: object) -> None:
    done = subprocess.run(["openssl", *map(str, words)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
