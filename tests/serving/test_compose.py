"""The example with one container per agent: a file that is read, whose commands exist."""

from __future__ import annotations

import importlib.util
import shlex

import yaml

from toy import REPOSITORY


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
