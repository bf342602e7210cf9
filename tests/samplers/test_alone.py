"""One agent acts alone: the others write nothing, whatever their policies would."""

from __future__ import annotations

import json

import pytest

from collm.errors import ConfigurationError
from collm.inference.actors import Actors
from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.samplers.alone import Alone
from collm.samplers.parallel import Parallel
from toy import Toy


@pytest.mark.parametrize("text", ["", "7"])
def test_the_others_write_the_same_and_the_agent_what_it_writes_anyway(tiny_folder, text):
    spec, backbone = PolicySpec(tiny_folder, max_new_tokens=4), Backbone(tiny_folder, "float32").eval()
    game = Toy(num_agents=3, horizon=1)
    policies = {name: Policy(name, spec, backbone, None) for name in game.agent_ids}
    with Actors(policies).serving(0, keep_cache=False) as actors:
        given = (game, game.tasks("eval"), actors, 0, "cpu")
        alone = Alone("a2", text).rollout(*given, greedy=True)
        together = Parallel().rollout(*given, greedy=True)
    for one, all_of_them in zip(alone, together, strict=True):
        actions = {name: action.text for name, action in one.turns[0].actions.items()}
        assert actions == {"a1": text, "a2": all_of_them.turns[0].actions["a2"].text, "a3": text}


def test_an_agent_that_is_not_there_is_refused():
    with pytest.raises(ConfigurationError, match="Alone.agent_id is 'b'; choose one of a1, a2"):
        Alone("b").check(Toy(), 1, 1)


def test_one_agent_is_evaluated_from_the_command_line(fit, run_folder):
    assert fit("--data.eval_sampler=Alone", "--data.eval_sampler.agent_id=a2", command="validate") == 0
    (path,) = (run_folder / "transcripts").glob("validate-*.jsonl")
    episodes = [json.loads(line) for line in path.read_text().splitlines()]
    assert {turn["actions"]["a1"] for one in episodes for turn in one["turns"]} == {""}
