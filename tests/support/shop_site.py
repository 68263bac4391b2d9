"""The tests' application as a Django site: its settings by environment variables; `python -m` migrates its database."""

from __future__ import annotations

import os
import sys
from typing import Any

import django
import pymysql
from django.conf import settings
from django.core.management import call_command
from sqlalchemy.engine import make_url

#: Of Django's names for databases, those that the tests have.
_ENGINES = {
    "sqlite": "django.db.backends.sqlite3",
    "postgresql": "django.db.backends.postgresql",
    "mysql": "django.db.backends.mysql",
}


def _database() -> dict[str, Any]:
    url = make_url(os.environ["TRIAL_DATABASE"])
    return {
        "ENGINE": _ENGINES[url.get_backend_name()],
        "NAME": url.database,
        "USER": url.username,
        "PASSWORD": url.password,
        "HOST": url.host,
        "PORT": url.port,
    }


pymysql.install_as_MySQLdb()
settings.configure(
    DATABASES={"default": _database()},
    INSTALLED_APPS=["django_celery_beat", "django_celery_results"],
    USE_TZ=os.environ.get("TRIAL_USE_TZ", "1") == "1",
    TIME_ZONE=os.environ.get("TRIAL_TIME_ZONE", "UTC"),
    SECRET_KEY="nobody signs anything here",
)
django.setup()

if __name__ == "__main__":
    call_command("migrate", *sys.argv[1:], verbosity=0, interactive=False)
else:
    from tests.support.app import app  # noqa: F401 - celery looks for it here
