"""The commands that start servers of the same agents on other machines."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from collm.errors import ConfigurationError


def check_machines(others: Sequence[str], port: int, api_key_env: str | None) -> None:
    """Refuse names that no machine has, and settings with which a client could not reach other machines."""
    for name in others:
        if not re.fullmatch(r"\w[\w.:-]*", name):
            raise ConfigurationError(f"others names {name!r}; give host names or addresses, such as [gpu2, gpu3].")
    if len(set(others)) < len(others):
        raise ConfigurationError(f"others is {', '.join(others)}; name every machine once.")
    if others and not port:
        raise ConfigurationError(
            f"others names {others[0]}, but port 0 takes different ports on each machine; give one that is free on all "
            "of them (of several agents, the first of as many), such as --port 8000."
        )
    if others and api_key_env is None:
        raise ConfigurationError(
            f"others names {others[0]}, whose servers can be reached by others; put a key into an environment variable "
            "and name it with --api_key_env."
        )


def lines_for(host: str, settings: Mapping[str, Any]) -> tuple[str, str]:
    """The command for one machine, and how SLURM starts it there.

    Args:
        host: Name or address of the machine.
        settings: Arguments of `serve` that are no defaults.
    """
    here = ("run", "others", "host", "advertise", "endpoints", "seconds")
    options = {name: value for name, value in settings.items() if name not in here}
    options |= {"host": "0.0.0.0", "advertise": host, "endpoints": f"endpoints.{host}.yaml"}
    said = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in options.items()]
    line = shlex.join(["collm", "serve", settings["run"], *said])
    return line, f"srun --nodes=1 --ntasks=1 --nodelist={shlex.quote(host)} {line}"
