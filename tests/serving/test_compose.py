"""The example with one container per agent: a file of the Compose Specification, whose commands exist."""

from __future__ import annotations

import importlib.util
import re
import shlex

import yaml

from toy import REPOSITORY

# Those of the specification that are used. By hand, the whole file was checked against the specification's JSON schema,
# which is in the package docker-compose 1.29.2 (compose/config/compose_spec.json).
KEYS = {
    "image",
    "working_dir",
    "volumes",
    "environment",
    "networks",
    "healthcheck",
    "depends_on",
    "command",
    "stdin_open",
}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


def test_names_and_keys_are_those_of_the_specification() -> None:
    text = (REPOSITORY / "docs" / "docker-compose.yaml").read_text()
    document = yaml.safe_load(text)
    assert {key for key in document if not key.startswith("x-")} == {"services", "networks", "volumes"}
    services = document["services"]
    for service in services.values():
        assert service.keys() <= KEYS
        assert set(service.get("networks", [])) <= set(document["networks"])
        named = {volume.partition(":")[0] for volume in service["volumes"] if volume[0] not in "./$"}
        assert named <= set(document["volumes"])
        for other, when in service.get("depends_on", {}).items():
            assert other in services
            assert when["condition"] in CONDITIONS
            waits_for_health = when["condition"] == "service_healthy"
            assert not waits_for_health or "test" in services[other]["healthcheck"]
    variables = re.findall(r"\$\{?(\w+)(\S)", text)
    assert set(variables) == {("RUN", ":"), ("TEAM_KEY", ":")}  # each refused if it is empty


def test_every_service_runs_something_that_is_there() -> None:
    services = yaml.safe_load((REPOSITORY / "docs" / "docker-compose.yaml").read_text())["services"]
    assert set(services) == {"packages", "builder_1", "builder_2", "game"}
    for name in ("builder_1", "builder_2"):
        command = services[name]["command"]
        assert importlib.util.find_spec(command[2]) is not None
        assert command[command.index("--folder") + 1].endswith(name)
        assert services[name]["stdin_open"]  # a server ends when its standard input does
    words = shlex.split(services["game"]["command"])
    assert (REPOSITORY / words[1]).is_file()
    assert f"builder_1=http://builder_1:{services['builder_1']['command'][-5]}/v1" in words
