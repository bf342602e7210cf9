"""Play an environment with any team."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from collm.environments.contract import tasks_of
from collm.errors import ConfigurationError, TrainingError
from collm.inference.actors import Actors
from collm.metrics import episode_numbers, stratified_interval, summarized
from collm.runtime.checks import COUNT, SEED, check_number
from collm.runtime.command import run_command
from collm.samplers.base import Sampler
from collm.samplers.parallel import Parallel
from collm.samplers.stand_ins import StandIns
from collm.serving.folders import agent_folders
from collm.serving.teams import Team, environment_of, part_of, play, policies_of, read_config
from collm.trajectory import Trajectory, collate, without_failed


def play_command(
    run: str,
    agent: dict[str, str] | None = None,
    endpoints: str | None = None,
    out: str = "logs/play",
    split: str = "eval",
    num_tasks: int | None = None,
    episodes_per_task: int = 1,
    episodes_at_once: int = 64,
    greedy: bool = False,
    seed: int = 0,
    late: str = "fail",
    api_key_env: str | None = None,
) -> None:
    """Play the environment of a run, with its agents or others, and write transcripts.

    Agents that no other argument names are those of the run. All agents of a turn are asked at the same time, and
    many episodes are played side by side.

    Args:
        run: Folder of a run, or a configuration that has an environment.
        agent: Who plays an agent: --agent NAME=WHO, once for each. WHO is `human`, who types in the terminal; `script`
            for the environment's demonstration; `text:...` for the same words in every turn; the address of an
            OpenAI-compatible interface, such as http://127.0.0.1:8000/v1#model, which is asked by chat; or the folder
            of another run or of an exported agent.
        endpoints: An endpoints.yaml of `serve.py`, for agents that `agent` does not name.
        out: Folder for transcripts.jsonl, to which the episodes that are played side by side are added when they end.
        split: Tasks to play: `eval` or `train`.
        num_tasks: Number of tasks; by default all.
        episodes_per_task: Episodes of each task.
        episodes_at_once: Episodes played side by side.
        greedy: Take the most likely tokens.
        seed: Seed of environments and sampling.
        late: What becomes of an answer that does not come from an address in `agent`: `fail`, `silent`, `last` or
            `wait`.
        api_key_env: Environment variable with the key of the addresses in `agent`.
    """
    check_number("episodes_per_task", episodes_per_task, COUNT)
    check_number("episodes_at_once", episodes_at_once, COUNT)
    check_number("num_tasks", num_tasks, COUNT.or_none)
    check_number("seed", seed, SEED)
    if split not in ("train", "eval"):
        raise ConfigurationError(f"split is {split!r}; use 'train' or 'eval'.")
    folder = Path(run) if Path(run).is_dir() else None
    config = read_config(folder / "config.yaml" if folder else run)
    environment = environment_of(config)
    remote = policies_of(endpoints) if endpoints else {}
    members = dict(agent or {})
    if folder and not {*members, *remote}.issuperset(environment.agent_ids):
        own = {name: str(path) for name, path in agent_folders(folder).items()}
        members = {**{name: path for name, path in own.items() if name not in remote}, **members}
    team = Team(environment.agent_ids, members, remote, {"late": late, "api_key_env": api_key_env})
    sampler = part_of(config, "eval_sampler", Sampler) or Parallel()
    if team.stand_ins:
        if type(sampler) is not Parallel:  # not one of its subclasses either, which branch episodes
            raise ConfigurationError(f"scripts and fixed texts cannot take part in a {type(sampler).__name__}.")
        sampler = StandIns(team.stand_ins)
    tasks = tasks_of(environment, split)[:num_tasks]
    size = max(1, episodes_at_once // episodes_per_task)
    sampler.check(environment, min(size, len(tasks)), episodes_per_task)
    actors, played, began = Actors(team.policies), [], time.perf_counter()
    people = [policy for policy in team.policies.values() if policy.spec.engine == "human"]
    target = Path(out) / "transcripts.jsonl"
    for first in range(0, len(tasks), size):

        def progress(turn: int, active: int, first: int = first) -> None:
            if not len(people) > len(team.stand_ins) and sys.stderr.isatty():
                said = f"\rtask {first + 1} of {len(tasks)}, turn {turn + 1}, {active} episodes "
                print(said, end="", file=sys.stderr)

        now = tasks[first : first + size]
        batch = play(environment, sampler, actors, now, episodes_per_task, seed + first, greedy, progress)
        write(batch, target, append=first > 0)
        played += batch
    report(played, actors, time.perf_counter() - began)
    print(f"transcripts are in {target}")


def write(played: Sequence[Trajectory], path: Path, append: bool) -> None:
    """Write the transcripts of episodes, one on a line, after those before them or in place of an older file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if append else "w", encoding="utf-8") as file:
            file.writelines(json.dumps(trajectory.record()) + "\n" for trajectory in played)
    except OSError as error:
        raise TrainingError(
            f"{path} could not be written: {error.strerror or error}. Free disk space or make the folder writable, or "
            "give another one with --out, and start again."
        ) from error


def report(played: Sequence[Trajectory], actors: Actors, seconds: float) -> None:
    """Print what came of the episodes."""
    finished, failed = without_failed(played)
    batch = collate(finished, seconds, failed)
    batch.numbers = actors.take_numbers()
    mean, low, high = stratified_interval([batch.rewards.sum(1)])
    print(f"\n{len(played)} episodes in {seconds:.1f} s, return {mean:.3f} [{low:.3f}, {high:.3f}]")
    for name, value in summarized(episode_numbers(batch)).items():
        if name != "return":
            print(f"  {name}: {value:.4g}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; `--agent NAME=WHO` is short for `--agent.NAME=WHO`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for index in range(len(given) - 1, 0, -1):
        if given[index - 1] == "--agent" and "=" in given[index] and not given[index].startswith("{"):
            given[index - 1 : index + 1] = [f"--agent.{given[index]}"]
    stopped = "transcripts.jsonl of --out has the batches that had ended, and is unchanged if none had; the same "
    stopped += "command plays from the start"
    return run_command(play_command, positional=True, arguments=given, stopped=stopped)
