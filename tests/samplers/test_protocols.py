from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from actors import actors_of
from collm.callbacks.samples import as_markdown
from collm.critics.histories import HistoryEncoder
from collm.data import RolloutDataModule
from collm.errors import ConfigurationError
from collm.models.dialogue import Dialogue
from collm.models.tiny import build_tokenizer
from collm.packing import action_sequences
from collm.samplers.base import Sampler
from collm.samplers.discussion import Discussion
from collm.samplers.parallel import Parallel
from collm.samplers.pipeline import Pipeline
from collm.studies.measure import episode_record, response_time, timing
from collm.studies.runs import read_run
from collm.trajectory import Action, Message, Task, Trajectory, Turn
from toy import Toy

LOG_PROB = -0.5


class Speaker:
    """Writes its name and how often it has been asked, and keeps what it was asked; a token is a character."""

    def __init__(self, name: str, seconds: float = 0.0):
        self.name = name
        self.seconds = seconds
        self.asked: list[str] = []

    def prompt(self, observations: Sequence[str], actions: Sequence[Action]) -> list[int]:
        assert len(observations) == len(actions) + 1
        before = [*actions[-1].prompt_ids, *actions[-1].token_ids] if actions else []
        return [*before, *map(ord, observations[-1] + "|")]

    def sample(self, prompts: Sequence[Sequence[int]], generator: torch.Generator, greedy: bool) -> list[Action]:
        texts = [f"{self.name}{len(self.asked) + index}" for index in range(len(prompts))]
        self.asked += ["".join(map(chr, prompt)) for prompt in prompts]
        return [
            Action(text, prompt, [*map(ord, text)], [LOG_PROB] * len(text), seconds=self.seconds)
            for text, prompt in zip(texts, prompts, strict=True)
        ]


def play(sampler: Sampler, num_tasks: int = 1, horizon: int = 2, num_agents: int = 2, **seconds: float):
    """Trajectories and the speakers that played them."""
    game = Toy(num_agents=num_agents, horizon=horizon)
    speakers = {name: Speaker(name, seconds.get(name, 0.0)) for name in game.agent_ids}
    return sampler.rollout(game, game.tasks("train")[:num_tasks], actors_of(speakers), 0, "cpu"), speakers


def test_parallel_agents_talk_to_nobody() -> None:
    (trajectory,), speakers = play(Parallel())
    assert speakers["a2"].asked == ["task 0 a2|", "task 0 a2|a20reward 1.0|"]
    assert [turn.messages for turn in trajectory.turns] == [[], []]
    assert "messages" not in trajectory.record()["turns"][0]


def test_pipeline_shows_later_agents_what_earlier_ones_saw_and_wrote() -> None:
    (trajectory,), speakers = play(Pipeline(), horizon=1, num_agents=3)
    assert speakers["a1"].asked == ["task 0 a1|"]
    told_a1 = "\n\na1 was told:\ntask 0 a1\n\na1 answered:\na10"
    told_a2 = "\n\na2 was told:\ntask 0 a2\n\na2 answered:\na20"
    assert speakers["a2"].asked == [f"task 0 a2{told_a1}\n\nNow give your own answer.|"]
    assert speakers["a3"].asked == [f"task 0 a3{told_a1}{told_a2}\n\nNow give your own answer.|"]
    (turn,) = trajectory.turns
    # what the environment showed stays apart, so that a critic's value cannot depend on an action of its own turn
    assert turn.observations == {name: f"task 0 {name}" for name in ("a1", "a2", "a3")}
    assert {name: action.text for name, action in turn.actions.items()} == {"a1": "a10", "a2": "a20", "a3": "a30"}
    assert [(message.agent_id, message.round) for message in turn.messages] == [("a1", 0), ("a2", 1), ("a3", 2)]


def test_pipeline_in_another_order() -> None:
    (trajectory,), speakers = play(Pipeline(order=["a2", "a1"]))
    assert speakers["a2"].asked[0] == "task 0 a2|"
    assert "a2 answered:\na20" in speakers["a1"].asked[0]
    # the dialogue goes on from what the agent was really shown
    assert speakers["a1"].asked[1].startswith(speakers["a1"].asked[0] + "a10reward 1.0")
    assert "a2 answered:\na21" in speakers["a1"].asked[1]
    assert list(trajectory.turns[0].actions) == ["a2", "a1"]


def test_discussion_answers_again_after_reading_the_others() -> None:
    (trajectory,), speakers = play(Discussion())
    again = "Now give your own answer again, improved in the light of this.|"
    first = f"task 0 a1|a10a2 answered:\na20\n\n{again}"
    second = f"{first}a11reward 1.0|"
    assert speakers["a1"].asked == ["task 0 a1|", first, second, f"{second}a12a2 answered:\na22\n\n{again}"]
    assert [turn.actions["a1"].text for turn in trajectory.turns] == ["a11", "a13"]
    rounds = [(message.agent_id, message.action.text, message.round) for message in trajectory.turns[1].messages]
    assert rounds == [("a1", "a12", 0), ("a2", "a22", 0), ("a1", "a13", 1), ("a2", "a23", 1)]


def test_more_rounds_and_episodes_side_by_side() -> None:
    trajectories, speakers = play(Discussion(rounds=3), num_tasks=2, horizon=1)
    assert len(speakers["a1"].asked) == 6
    # the last answers of round 2, each episode its own
    assert "a2 answered:\na22\n" in speakers["a1"].asked[4].rpartition("a12")[2]
    assert "a2 answered:\na23\n" in speakers["a1"].asked[5].rpartition("a13")[2]
    assert [trajectory.turns[0].actions["a2"].text for trajectory in trajectories] == ["a24", "a25"]


@pytest.mark.parametrize(("sampler", "scored"), [(Parallel(), [2]), (Pipeline(), [2]), (Discussion(), [4])])
def test_all_that_an_agent_wrote_in_a_turn_is_trained(sampler: Sampler, scored: list[int]) -> None:
    """Two tokens a message, in one row: messages are part of the turn's action, and their context is not scored."""
    (trajectory,), speakers = play(sampler, horizon=1)
    for agent_id, speaker in speakers.items():
        (sequence,) = action_sequences([trajectory], agent_id)
        positions = [index for index, turn in enumerate(sequence.turns) if turn == 0]
        assert [len(positions)] == [3 * count // 2 for count in scored]
        assert [sequence.old_log_probs[position] for position in positions] == [LOG_PROB] * len(positions)
        assert "".join(map(chr, sequence.ids)) == speaker.asked[-1] + trajectory.turns[0].actions[agent_id].text


def test_critic_reads_messages_only_after_the_turn() -> None:
    (trajectory,), _ = play(Discussion())
    encoder = HistoryEncoder("tiny", ("a1", "a2"), (), 1000, progress=False)
    encoder.tokens = lambda text: [*map(ord, text)]
    assert encoder.before_actions(trajectory, 0) == "[a1] task 0 a1\n[a2] task 0 a2\n[value]"
    assert "".join(map(chr, encoder.actions(trajectory, 0))) == "\n[a1] a10\n[a1] a11\n[a2] a20\n[a2] a21\n"


def test_transcripts_show_the_conversation() -> None:
    (trajectory,), _ = play(Discussion(), horizon=1)
    told = "a1 answered:\na10\n\nNow give your own answer again, improved in the light of this."
    assert trajectory.record()["turns"][0]["messages"][3] == {"agent_id": "a2", "observation": told, "text": "a21"}
    markdown = as_markdown(trajectory)
    assert (
        markdown.index("a1 is shown\n\n    task 0 a1") < markdown.index("    a1 answered:") < markdown.index("    a21")
    )


@pytest.mark.parametrize(
    ("sampler", "expected", "idle"), [(Parallel(), 4.0, 0.25), (Pipeline(), 6.0, 0.5), (Discussion(), 8.0, 0.25)]
)
def test_response_time(sampler: Sampler, expected: float, idle: float) -> None:
    """Two turns, 1 s and 2 s per message: the slowest, the sum, and the slowest of two rounds.

    In a turn of 2 s two agents are busy for 3 s of 4; in a pipeline of 3 s for 3 of 6; in two rounds for 6 of 8.
    """
    (trajectory,), _ = play(sampler, a1=1.0, a2=2.0)
    assert response_time(trajectory) == pytest.approx(expected)
    measured = timing(trajectory)
    assert measured["turn_seconds"] == pytest.approx(expected / 2)
    assert measured["idle_share"] == pytest.approx(idle)
    tokens = sum(len(m.action.token_ids) for turn in trajectory.turns for a in ("a1", "a2") for m in turn.written_by(a))
    assert measured["tokens_per_second"] == pytest.approx(tokens / expected)


def test_cost_is_tokens_per_agent_and_turn() -> None:
    a, b = (Action("", token_ids=[0] * size) for size in (3, 5))
    talk = [Message("x", "", Action("", token_ids=[0] * 10)), Message("x", "", a, 1), Message("y", "", b, 1)]
    turns = [Turn({"x": "", "y": ""}, {"x": a, "y": b}, 1.0), Turn({}, {"x": a, "y": b}, 2.0, messages=talk)]
    record = episode_record(Trajectory(Task("t", {}), 0, 2, 1.0, turns, metrics={"score": 7.0}))
    # 8 tokens in the first turn, 18 in the second; four answers, five messages
    assert record == {"return": 3.0, "score": 7.0, "cost": 26 / 4, "message_tokens": 26 / 5}
    assert episode_record(Trajectory(Task("t", {}), 0, 2, 1.0)) == {"return": 0.0}


def test_what_others_wrote_may_not_push_the_instruction_out() -> None:
    tokenizer = build_tokenizer()
    dialogue = Dialogue(tokenizer, 40)
    prompt = dialogue.prompt(["first words " + "x " * 100 + "last words"], [])
    assert len(prompt) == 40
    text = tokenizer.decode(prompt)
    assert text.startswith("<|user|>first words")
    assert text.endswith("last words<|end|><|assistant|>")


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (
            lambda: RolloutDataModule(Toy(num_agents=1), eval_sampler=Pipeline()),
            ["Pipeline", "Toy", "'a1'", "Parallel"],
        ),
        (lambda: RolloutDataModule(Toy(num_agents=1), sampler=Discussion()), ["Discussion", "Toy", "'a1'"]),
        (lambda: RolloutDataModule(Toy(), eval_sampler=Pipeline(["a1"])), ["order", "['a1']", "a1, a2"]),
        (lambda: RolloutDataModule(Toy(), eval_sampler=Pipeline(["a1", "a1"])), ["order", "once"]),
        (lambda: Discussion(rounds=1), ["rounds is 1", "at least 2"]),
    ],
)
def test_what_cannot_work_is_said_at_once(make, names: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert all(name in str(caught.value) for name in names), str(caught.value)


@pytest.mark.parametrize("name", ["pipeline.Pipeline", "discussion.Discussion"])
def test_protocols_train_on_policy(fit: Callable[..., int], run_folder: Path, name: str) -> None:
    """All messages are scored in the context they were written in: the policies that played give the same numbers."""
    assert fit(f"--data.sampler=collm.samplers.{name}", "--trainer.max_epochs=1") == 0
    (drift,) = read_run(run_folder).scalars["policy/log_prob_drift/a2"].values()
    assert drift < 1e-4
