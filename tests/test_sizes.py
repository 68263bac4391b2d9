"""Sizes with a unit are read, others refused; and they are said as a person says them."""

from __future__ import annotations

import pytest

from opslib import sizes
from opslib.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("1GB", 10**9),
        ("1 GiB", 2**30),
        ("512MB", 512 * 10**6),
        ("512m", 512 * 10**6),
        ("1.5gib", 3 * 2**29),
        (" 2T ", 2 * 10**12),
        ("64k", 64_000),
    ],
)
def test_a_size_is_read(text, bytes_):
    """By thousands, and with an i by 1024."""
    assert sizes.parse(text) == bytes_


@pytest.mark.parametrize("text", ["", "1024", "1.5", "GB", "-1GB", "0MB", "1PB", "1 G B", "1e3MB", "1GB 2"])
def test_what_is_none_is_refused(text):
    """With its name, and how it is written."""
    with pytest.raises(SettingsError) as refused:
        sizes.parse(text, "redis_memory")

    assert "redis_memory" in refused.value.message
    assert "1GB" in refused.value.hint


@pytest.mark.parametrize(
    ("bytes_", "said"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (2**30, "1.0 GiB"),
        (5 * 2**50, "5120 TiB"),
    ],
)
def test_it_is_said_as_a_person_says_it(bytes_, said):
    """In the largest unit that fits."""
    assert sizes.spell(bytes_) == said
