"""What callbacks write: transcripts with all that the replay page shows, curves, tables; and nothing in a trial run."""

from __future__ import annotations

import io
import json
import random
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.trainer.states import RunningStage

from collm.algorithms.magrpo import MAGRPO
from collm.callbacks.curve import draw_curve
from collm.callbacks.progress import RolloutProgress
from collm.callbacks.replay import WriteReplay
from collm.callbacks.samples import add_branches, add_tokens, note_estimates
from collm.callbacks.summary import PrintSummary, in_columns
from collm.callbacks.table import in_one_line
from collm.callbacks.threads import ChooseThreads
from collm.environments.contract import drawn
from collm.errors import ConfigurationError
from collm.inference.actors import Actors
from collm.models.policy_spec import PolicySpec
from collm.packing import TokenSequence
from collm.rollout_tree import Branch
from collm.samplers.discussion import Discussion
from collm.trajectory import Action, Task, Trajectory, Turn, collate
from toy import Toy


def trajectory(*actions: Action, branches: bool = False) -> Trajectory:
    """An episode of one agent with a turn for each action."""
    turns = [
        Turn({"a": "o"}, {"a": action}, 1.0, branch=Branch(index, index - 1) if branches else None)
        for index, action in enumerate(actions)
    ]
    return Trajectory(Task("t", {}), 0, 2, 1.0, turns)


def test_estimates_are_written_to_the_turns_they_belong_to():
    batch = collate([trajectory(Action("x"), Action("y")), trajectory(Action("z"))])
    note_estimates(batch, {"V(h)": torch.tensor([[0.25, 0.5], [0.75, 0.0]])})
    assert [turn.estimates for turn in batch.trajectories[0].turns] == [{"V(h)": 0.25}, {"V(h)": 0.5}]
    assert [turn.estimates for turn in batch.trajectories[1].turns] == [{"V(h)": 0.75}]
    assert batch.trajectories[1].record()["turns"][0]["estimates"] == {"V(h)": 0.75}


def test_tokens_stand_beside_their_log_probabilities_and_entropies():
    episode = trajectory(Action("ab", token_ids=[1, 2], log_probs=[-0.5, -2.00049]), Action("b", (), [2], [-1.0]))
    record = episode.record()
    policies = {"a": SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: "-ab"[ids[0]]))}
    add_tokens(record, episode, policies, {episode.turns[0].actions["a"].uid: [0.25, 1.5]})
    assert record["turns"][0]["tokens"] == {"a": [["a", -0.5, 0.25], ["b", -2.0, 1.5]]}
    assert record["turns"][1]["tokens"] == {"a": [["b", -1.0]]}  # written elsewhere


def test_tokens_without_known_log_probabilities_are_not_shown_as_certain():
    """Scripts, stand-ins and some servers note 0 for them; a policy with one word to choose knows that it is 0."""
    script, certain = Action("b", (), [2], [0.0]), Action("b", (), [2], [0.0], policy_version=0)
    episode = trajectory(script, certain, Action("b", policy_version=0))
    record = episode.record()
    policies = {"a": SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: "-ab"[ids[0]]))}
    add_tokens(record, episode, policies, {script.uid: [0.5]})
    assert [turn["tokens"] for turn in record["turns"]] == [{}, {"a": [["b", 0.0]]}, {}]


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"temperature": 0.5}])
def test_entropies_are_those_of_the_distributions_that_tokens_were_drawn_from(tiny_folder, options):
    """Also where an agent sends a message before it acts, and where two episodes share an action."""
    module = MAGRPO(agent_ids=("a1", "a2"), policy=PolicySpec(tiny_folder, max_new_tokens=5, **options))
    module.configure_model()
    game = Toy()
    with Actors(module.policies).serving(0, keep_cache=False) as actors:
        episodes = Discussion().rollout(game, game.tasks("eval"), actors, 0, "cpu", num_generations=2)
    found = module.token_entropies([replace(episodes[0]), *episodes])
    actions = [(name, action) for one in episodes for turn in one.turns for name, action in turn.actions.items()]
    assert set(found) == {action.uid for _, action in actions}
    for agent_id, action in actions:
        policy = module.policies[agent_id]
        ids = torch.tensor([[*action.prompt_ids, *action.token_ids]])
        logits = policy.backbone.lm(ids).logits[0, len(action.prompt_ids) - 1 : -1] / policy.spec.temperature
        if policy.spec.top_k:
            logits = logits.masked_fill(logits < logits.topk(policy.spec.top_k).values[:, -1:], -torch.inf)
        expected = torch.distributions.Categorical(logits=logits).entropy()
        assert found[action.uid] == pytest.approx(expected.tolist(), abs=1e-3)


def test_siblings_that_share_an_action_have_the_same_number():
    shared, other = Action("x"), Action("y")
    numbers: dict[str, str] = {}
    records = []
    for episode in (
        trajectory(shared, branches=True),
        trajectory(other, branches=True),
        trajectory(shared, branches=True),
    ):
        records.append(episode.record())
        add_branches(records[-1], episode, numbers)
    assert [record["turns"][0]["branch"]["actions"] for record in records] == [{"a": "0"}, {"a": "1"}, {"a": "0"}]
    assert "branch" not in trajectory(shared).record()["turns"][0]


def test_the_curve_shows_the_interval_and_survives_a_single_point():
    picture = np.asarray(draw_curve([(0, 0.0, -1.0, 1.0), (100, 0.0, -1.0, 1.0)]))
    column = picture[:, 500]
    band = (column == np.array([0xCF, 0xE2, 0xF3])).all(-1).sum()
    # from -1 to 1 of an axis from -1.2 to 1.2, which is 440 pixels high, without the line and four grid lines
    assert band == pytest.approx(440 * 2 / 2.4 - 4, abs=6)
    assert draw_curve([(0, 1.0, 1.0, 1.0)]).size == (1000, 560)


def test_columns_are_aligned():
    assert in_columns([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc  d"


@pytest.mark.parametrize(
    ("size", "variable", "num_threads", "expected"),
    [(100, None, None, 1), (30_000_000, None, None, 2), (100, "2", None, 2), (30_000_000, None, 1, 1)],
)
def test_small_models_use_one_thread(monkeypatch, size, variable, num_threads, expected):
    used = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    weights = [torch.empty(size, device="meta")]
    module = SimpleNamespace(device=torch.device("cpu"), backbones={"a": SimpleNamespace(parameters=lambda: weights)})
    try:
        torch.set_num_threads(2)
        ChooseThreads(num_threads).on_fit_start(None, module)  # type: ignore[arg-type]
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(used)


@pytest.mark.parametrize(
    ("num_threads", "expected"),
    [
        (3, "torch uses 3 thread(s), as ChooseThreads.num_threads says"),
        (None, "torch uses one thread, with which small models are fastest; OMP_NUM_THREADS can say otherwise"),
    ],
)
def test_who_chose_the_threads_is_told(monkeypatch, num_threads, expected):
    told, used = [], torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("collm.callbacks.threads.rank_zero_info", told.append)
    module = SimpleNamespace(device=torch.device("cpu"), backbones={})
    try:
        torch.set_num_threads(2)
        ChooseThreads(num_threads).on_fit_start(None, module)  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(used)
    assert told == [expected]


@pytest.mark.parametrize("resumed", [False, True])
def test_the_samples_and_the_time_at_the_end_are_those_of_one_process(monkeypatch, capsys, tmp_path, resumed):
    clock = iter([0.0, 100.0, 165.0])  # made, begins, ends
    monkeypatch.setattr("collm.callbacks.summary.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("collm.callbacks.summary.networks", lambda module: ())
    trainer = SimpleNamespace(log_dir=str(tmp_path), is_global_zero=True, fast_dev_run=False)
    module = SimpleNamespace(joint_samples=1024 if resumed else 0)
    summary = PrintSummary()
    summary.on_fit_start(trainer, module)
    for _ in range(2):
        summary.on_train_batch_start(trainer, module, None, 0)
        module.joint_samples += 256
    summary.on_fit_end(trainer, module)
    before = ", after 1,024 before the run was resumed" if resumed else ""
    assert capsys.readouterr().out.splitlines()[-1] == f"trained on 512 joint samples in 1 min 05 s{before}"


@pytest.mark.parametrize("picture", [7, "<script>", "<svg" + " " * 300_000])
def test_pictures_that_are_no_svg_are_refused(monkeypatch, picture):
    environment = Toy()
    monkeypatch.setattr(Toy, "render_turn", lambda self, state: picture)
    state, _ = environment.reset(environment.tasks("eval")[0], random.Random(0))
    with pytest.raises(ConfigurationError, match="render_turn returned"):
        drawn(environment, state)


def test_a_run_leaves_a_replay_with_values_tokens_and_siblings(fit, run_folder, capsys):
    cross = ["--data.eval_sampler=Tree", "--data.eval_sampler.joint=cross", "--data.eval_episodes_per_task=2"]
    assert fit("--trainer.max_epochs=1", *cross) == 0
    first, second = sorted((run_folder / "transcripts").glob("*.jsonl"))
    episodes = [json.loads(line) for line in second.read_text().splitlines()]
    turn = episodes[0]["turns"][0]
    assert set(turn["estimates"]) == {"V(h)", "advantage"}
    assert "".join(piece for piece, *_ in turn["tokens"]["a1"]).startswith(turn["actions"]["a1"][:1])
    assert all(log_prob <= 0 < entropy for _, log_prob, entropy in turn["tokens"]["a1"])
    roots = [one["turns"][0]["branch"] for one in episodes if one["task_id"] == episodes[0]["task_id"]]
    assert {one["parent"] for one in roots} == {roots[0]["parent"]}
    assert len({one["node"] for one in roots}) == 4  # two responses of each agent, crossed
    assert {tuple(one["actions"].values()) for one in roots} == {
        (x, y) for x in {one["actions"]["a1"] for one in roots} for y in {one["actions"]["a2"] for one in roots}
    }
    page = (run_folder / "replay.html").read_text()
    assert '"V(h)"' in page
    assert (run_folder / "return.png").is_file()
    told = capsys.readouterr().out
    assert "network" in told
    assert "return on held-out tasks: " in told
    assert "replay.html" in told


@pytest.mark.parametrize("broken", [False, True])
def test_only_a_replay_page_that_was_written_is_named(broken: bool, tmp_path, monkeypatch, capsys):
    def write_page(sources, out, title):
        if broken:
            raise ConfigurationError("episodes.jsonl has no line")

    monkeypatch.setattr("collm.callbacks.replay.write_page", write_page)
    monkeypatch.setattr("collm.callbacks.replay.has_transcripts", lambda folder: True)
    trainer = SimpleNamespace(
        log_dir=str(tmp_path), is_global_zero=True, fast_dev_run=False, state=SimpleNamespace(fn="test")
    )
    with pytest.warns(UserWarning, match="no replay page: episodes.jsonl") if broken else nullcontext():
        WriteReplay().on_test_end(trainer, SimpleNamespace())
    assert ("replay.html" in capsys.readouterr().out) is not broken


class Bar:
    """A progress bar that notes what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def set_description(self, text: str) -> None:
        self.told.append(text)


def test_a_long_update_moves_the_bar_with_its_micro_batches_but_no_more_than_once_a_second(tiny_folder, monkeypatch):
    clock = iter([100.0, 100.2, 101.5, 101.9, 103.0])
    monkeypatch.setattr("collm.callbacks.progress.time.perf_counter", lambda: next(clock))
    module = MAGRPO(agent_ids=("a1",), policy=PolicySpec(tiny_folder), tokens_per_micro_batch=1)
    module.configure_model()
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(), state=SimpleNamespace(stage=RunningStage.TRAINING), current_epoch=3
    )
    progress = RolloutProgress()
    monkeypatch.setattr(TQDMProgressBar, "setup", lambda self, *args: None)
    monkeypatch.setattr(TQDMProgressBar, "on_train_batch_start", lambda self, *args: None)
    progress._trainer, progress._train_progress_bar = trainer, Bar()
    progress.setup(trainer, module, "fit")
    progress.on_train_batch_start()  # at 100.0
    sequences = [TokenSequence(row, [7, 9], [-1, 0], [0.0, -1.0]) for row in range(4)]
    assert len(list(module.micro_batches(sequences, {0, 1, 2, 3}, module.policies["a1"]))) == 4
    assert progress._train_progress_bar.told == [
        *("Epoch 3 [update]", "Epoch 3 [update, micro-batch 2]", "Epoch 3 [update, micro-batch 4]")
    ]


def test_generation_moves_the_bar_within_a_turn(fit, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr("collm.runtime.progress.PAUSE", 0.0)
    monkeypatch.setattr(RolloutProgress, "_describe", lambda self, phase: told.append(phase))
    assert fit("--trainer.max_epochs=1", "--data.rollouts_per_epoch=1", "--model.policy.max_new_tokens=3") == 0
    rollout = told[: told.index("update")]
    assert rollout[-1] == "turn 2, 2 episodes, token 3 of at most 3"
    assert "turn 2, 2 episodes, prompts, layer 1 of 2" in rollout


def test_numbers_that_are_not_finite_are_written_as_such(monkeypatch):
    values = {"eval/return": float("nan"), "rollout/return": float("inf"), "other": 0.5, "v_num": 3}
    monkeypatch.setattr(TQDMProgressBar, "get_metrics", lambda *args: values)
    module = SimpleNamespace(num_rollouts=0)
    shown = RolloutProgress().get_metrics(SimpleNamespace(callback_metrics={}, max_epochs=1), module)
    assert shown == {"eval/return": "not finite", "rollout/return": "not finite", "other": 0.5}
    bar = Tqdm(total=1, disable=False, file=(file := io.StringIO()))
    bar.set_postfix(shown)
    bar.close()
    assert "eval/return=not finite" in file.getvalue()


def test_a_table_of_samples_is_printed_on_request(fit, capsys):
    given = ("--trainer.callbacks+=PrintSamples", "--trainer.callbacks.num_episodes=1")
    sampler = ("--data.eval_sampler=toy.Scripted", "--data.eval_sampler.text=one 7")
    assert fit(*given, *sampler, "--trainer.enable_progress_bar=false", command="validate") == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("after 0 joint samples")
    expected = [("1", "a1"), ("1", "a2"), ("2", "a1"), ("2", "a2")]
    assert [line.split() for line in lines[start + 1 : start + 6]] == [
        ["task", "turn", "agent", "writes", "reward"],
        *(["eval_0", turn, agent, "one", "7", "1.000"] for turn, agent in expected),
    ]


def test_a_table_is_not_broken_by_what_agents_write():
    assert in_one_line("a  b\n" + "c" * 9, 8) == "a b ccc…"
    assert in_one_line("\x1b[2J\u202ex", 8) == "\ufffd[2J\ufffdx"


def test_a_trial_run_leaves_nothing_behind(fit, tmp_path: Path):
    before = {path for path in tmp_path.rglob("*") if path.suffix != ".pyc"}
    assert fit("--trainer.fast_dev_run=true") == 0
    assert {path for path in tmp_path.rglob("*") if path.suffix != ".pyc"} == before
