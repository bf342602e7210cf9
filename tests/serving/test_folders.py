"""What is read from the folder of an exported agent: its settings for clients, its adapter, and where it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from collm.errors import ConfigurationError
from collm.models.agent_record import SETTINGS, read_agent
from collm.models.policy_spec import PolicySpec
from collm.serving import agents
from collm.serving.agents import load_agent
from collm.serving.command import client_settings
from collm.serving.teams import spec_of
from served import team

OTHERS: dict[str, Any] = {
    **{"max_new_tokens": 7, "min_new_tokens": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "dtype": "bfloat16"},
    **{"quantization": "nf4", "chat_template": False, "template_arguments": {"a": 1}, "system_prompt": "Be brief."},
    **{"control_tokens_in_data": True, "allowed_words": ["a", "b"]},
}


def test_clients_have_every_setting_of_the_agent(tmp_path: Path) -> None:
    policy, default = team("tiny")["a1"], PolicySpec()
    assert OTHERS.keys() == set(SETTINGS)
    assert all(getattr(default, name) != value for name, value in OTHERS.items())
    policy.save(tmp_path)
    for given in (OTHERS, {name: getattr(default, name) for name in SETTINGS}):
        record = {**read_agent(tmp_path), **given}
        (tmp_path / "collm_agent.json").write_text(json.dumps(record))
        settings = client_settings("a1", tmp_path, "http://127.0.0.1:9/v1", None)
        spec = spec_of(settings)
        assert {name: getattr(spec, name) for name in SETTINGS} == given
        assert spec.context_length == record["context"]
    assert settings.keys() == {"engine", "path", "context_length", "endpoint"}  # the rest are defaults


@pytest.mark.parametrize("parameters", ["separate", "lora"])
def test_agents_are_loaded_where_they_are_asked_to_be(
    tmp_path: Path, parameters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = team("tiny", parameters)["a1"]
    policy.save(tmp_path)
    here = load_agent(tmp_path, device="cpu")
    assert {weight.device.type for weight in here.backbone.parameters()} == {"cpu"}
    away = load_agent(tmp_path, device="meta")
    assert {weight.device.type for weight in away.backbone.parameters()} == {"meta"}
    assert away.backbone.home == away.device == torch.device("meta")

    class Asked(Exception):
        pass

    def backbone(*args: Any, home: torch.device, **options: Any) -> None:
        raise Asked(home.type)

    monkeypatch.setattr(agents, "Backbone", backbone)
    for found in (True, False):  # on a GPU where there is one
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found)
        with pytest.raises(Asked, match="cuda" if found else "cpu"):
            load_agent(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "adapter_config.json cannot be read: .*Export the agent again"),
        ("[]", "adapter_config.json: r is None, as of no adapter"),
        ('{"lora_alpha": 8, "base_model_name_or_path": "tiny"}', "adapter_config.json: r is None"),
        ('{"r": "x"}', "adapter_config.json: r is 'x'"),
        ('{"r": 4, "lora_alpha": null}', "lora_alpha is None"),
        ('{"r": 4, "lora_alpha": 8}', "base_model_name_or_path is None"),
    ],
)
def test_a_damaged_adapter_is_named(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "collm_agent.json").write_text('{"agent_id": "a1"}')
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ConfigurationError, match=says):
        load_agent(tmp_path)
