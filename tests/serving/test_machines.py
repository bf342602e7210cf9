"""Commands for servers of the same agents on other machines. `test_documented_teams.py` runs them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from collm.errors import ConfigurationError
from collm.serving.command import serve
from collm.serving.machines import lines_for


def test_the_line_for_another_machine_repeats_what_was_asked_and_says_where_it_is() -> None:
    asked = {
        "run": "logs/my run",
        "agents": ["a", "b"],
        "port": 8000,
        "host": "10.0.0.1",
        "advertise": "gpu1",
        "api_key_env": "TEAM_KEY",
        "trainable": True,
        "vllm_arguments": "--enforce-eager",
        "others": ["gpu2"],
        "endpoints": "mine.yaml",
        "seconds": 3.0,
    }
    plain, slurm = lines_for("gpu2", asked)
    assert shlex.split(plain) == [
        "collm",
        "serve",
        "logs/my run",
        '--agents=["a", "b"]',
        "--port=8000",
        "--api_key_env=TEAM_KEY",
        "--trainable=true",
        "--vllm_arguments=--enforce-eager",
        "--host=0.0.0.0",
        "--advertise=gpu2",
        "--endpoints=endpoints.gpu2.yaml",
    ]
    assert slurm == f"srun --nodes=1 --ntasks=1 --nodelist=gpu2 {plain}"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"others": ["gpu2"], "api_key_env": "TEAM_KEY"},
            "others names gpu2, but port 0 takes different ports",
        ),
        (
            {"others": ["gpu2"], "port": 8000},
            "others names gpu2, whose servers can be reached by others",
        ),
        ({"others": ["gpu2", "gpu2"], "port": 8000}, "others is gpu2, gpu2; name every machine once"),
        ({"others": ["gpu2; rm x"], "port": 8000}, r"others names 'gpu2; rm x'; give host names or addresses, such as"),
    ],
)
def test_settings_with_which_nobody_could_reach_the_others(settings: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=said):
        serve(str(tmp_path), **settings)
