"""What a team is worth without one of its agents, and with one of another run's.

All teams play the same held-out tasks with sampled actions. Numbers are means with a 95 % bootstrap interval over runs
and episodes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from collm.environments.base import Environment
from collm.environments.contract import tasks_of
from collm.errors import ConfigurationError
from collm.inference.actors import Actors
from collm.metrics import stratified_interval
from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.runtime.checks import COUNT, SEED, check_number
from collm.runtime.command import run_command
from collm.runtime.files import write_text
from collm.samplers.stand_ins import StandIn, StandIns, repeating, saying
from collm.serving.agents import load_agent
from collm.serving.folders import agent_folders
from collm.serving.teams import environment_of, play, read_config
from collm.studies.plots import pyplot, save
from collm.studies.tables import Row, as_cell, as_text, write_csv

_RETURN = "team return"


@dataclass(frozen=True)
class Table:
    """Everything that is measured: rows of situations, and the returns of first agents (down) with others (across)."""

    rows: list[Row]
    matrix: list[list[tuple[float, float, float]]]


def cross_play(runs: list[str], out: str, episodes_per_task: int = 8, seed: int = 1000) -> None:
    """Let the agents of several runs play with a mate missing, late, untrained, or of another run.

    The folder `out` will contain README.md, table.csv, table.json and table.png.

    Args:
        runs: Folders of finished runs of one environment that differ in their seeds.
        out: Folder to write to.
        episodes_per_task: Episodes of each held-out task, for every team.
        seed: Seed of environments and sampling, the same for every team.
    """
    check_number("episodes_per_task", episodes_per_task, COUNT)
    check_number("seed", seed, SEED)
    pyplot()
    if not runs:
        raise ConfigurationError("runs is empty; give the folders of one or more finished runs.")
    configs = [read_config(Path(run) / "config.yaml") for run in runs]
    environment = environment_of(configs[0])
    for run, config in zip(runs, configs, strict=True):
        if config["data"]["environment"] != configs[0]["data"]["environment"]:
            raise ConfigurationError(f"{run} has another environment than {runs[0]}; give runs of one.")
    trained = [{name: load_agent(path) for name, path in agent_folders(run).items()} for run in runs]
    table = measure(environment, trained, untrained(configs[0], trained[0]), episodes_per_task, seed)
    write(Path(out), table, environment, runs, episodes_per_task, seed)


def untrained(config: Mapping[str, Any], agents: Mapping[str, Policy]) -> dict[str, Policy]:
    """The agents of a run as they were before training; empty where they began at random."""
    given = config["model"]["init_args"]
    before = {}
    for name, policy in agents.items():
        spec = (given.get("policies") or {}).get(name) or given["policy"]
        if spec.get("random_weights") or spec["path"] == "relay":
            return {}
        settings = {key: value for key, value in vars(policy.spec).items() if key not in ("path", "lora_rank")}
        own = PolicySpec(path=spec["path"], **settings)
        before[name] = Policy(name, own, Backbone(own.path, own.dtype, home=policy.backbone.home).eval(), None)
    return before


def measure(
    environment: Environment,
    trained: Sequence[Mapping[str, Policy]],
    before: Mapping[str, Policy],
    episodes_per_task: int,
    seed: int,
) -> Table:
    """Play all teams.

    Args:
        environment: The game.
        trained: The agents of each run.
        before: The same agents before training; empty to leave them out.
        episodes_per_task: Episodes of each held-out task.
        seed: Seed of environments and sampling.
    """
    tasks = tasks_of(environment, "eval")

    def returns(policies: Mapping[str, Policy], stand_ins: Mapping[str, StandIn] | None = None) -> torch.Tensor:
        actors = Actors({name: policies[name] for name in environment.agent_ids})
        sampler = StandIns(stand_ins or {})
        played = play(environment, sampler, actors, tasks, episodes_per_task, seed)
        return torch.tensor([trajectory.total_reward for trajectory in played])

    first, *others = environment.agent_ids
    pairs = [[{**down, **{name: across[name] for name in others}} for across in trained] for down in trained]
    matrix = [[returns(team) for team in teams] for teams in pairs]
    situations = {"trained team": [matrix[index][index] for index in range(len(trained))]}
    if before:
        situations["untrained team"] = [returns(before)]
    for name in environment.agent_ids:
        situations[f"without {name}"] = [returns(team, {name: saying("")}) for team in trained]
        if environment.horizon > 1:
            gone = [returns(team, {name: saying("", after=1)}) for team in trained]
            situations[f"{name} silent after turn 1"] = gone
            situations[f"{name} repeats turn 1"] = [returns(team, {name: repeating(name)}) for team in trained]
        if before:
            situations[f"{name} untrained"] = [returns({**team, name: before[name]}) for team in trained]
    if others and len(trained) > 1:
        mixed = [matrix[i][j] for i in range(len(trained)) for j in range(len(trained)) if i != j]
        situations[f"{first} of another run"] = mixed
    rows = [Row(label, len(runs), {_RETURN: stratified_interval(runs)}) for label, runs in situations.items()]
    return Table(rows, [[stratified_interval([cell]) for cell in line] for line in matrix])


def write(
    folder: Path, table: Table, environment: Environment, runs: Sequence[str], episodes_per_task: int, seed: int
) -> None:
    """Write the table as text, numbers and a picture."""
    print("\n" + as_text(table.rows))
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "table.csv", table.rows)
    cells = [{"label": row.label, "teams": row.num_runs, "return": row.cells[_RETURN]} for row in table.rows]
    content = {"runs": list(map(str, runs)), "episodes_per_task": episodes_per_task, "seed": seed}
    write_text(folder / "table.json", json.dumps({**content, "table": cells, "matrix": table.matrix}, indent=2) + "\n")
    first, *others = environment.agent_ids
    lines = [
        f"# {type(environment).__name__}: teams without a mate, and of several runs",
        "",
        f"Return of {len(runs)} trained teams on held-out tasks, {episodes_per_task} sampled episodes of each task, "
        "with 95 % bootstrap intervals over runs and episodes. One command made it:",
        "",
        f"    python tools/cross_play.py --runs '[{', '.join(map(str, runs))}]' --out {folder}",
        "",
        "| situation | teams | return |",
        "|---|---|---|",
        *(f"| {row.label} | {row.num_runs} | {as_cell(row.cells[_RETURN])} |" for row in table.rows),
        "",
        f"{first} of the run on the left with {', '.join(others) or 'nobody'} of the run above:",
        "",
        "| |" + "".join(f" run {index} |" for index in range(len(runs))),
        "|---|" + "---|" * len(runs),
        *(f"| run {i} |" + "".join(f" {as_cell(cell)} |" for cell in line) for i, line in enumerate(table.matrix)),
        "",
        "![table](table.png)",
    ]
    write_text(folder / "README.md", "\n".join(lines) + "\n")
    draw(folder / "table.png", table, first)


def draw(path: Path, table: Table, first: str) -> None:
    """The rows as bars with intervals, beside the matrix."""
    plt = pyplot()
    figure, (bars, panel) = plt.subplots(1, 2, figsize=(11, 0.45 * len(table.rows) + 1.5), layout="constrained")
    for index, row in enumerate(table.rows):
        mean, low, high = row.cells[_RETURN]
        bars.barh(index, mean, color="C0" if index else "C2", alpha=0.7)
        bars.hlines(index, low, high, color="black", linewidth=1.5)
    bars.set_yticks(range(len(table.rows)), [row.label for row in table.rows])
    bars.invert_yaxis()
    bars.set_xlabel(_RETURN)
    means = [[cell[0] for cell in line] for line in table.matrix]
    least, most = min(map(min, means)), max(map(max, means))
    panel.imshow(means, cmap="Blues", vmin=min(0.0, least), vmax=max(0.0, 1.5 * most))  # dark texts stay readable
    for i, line in enumerate(means):
        for j, mean in enumerate(line):
            panel.text(j, i, f"{mean:.2f}", ha="center", va="center")
    ticks = range(len(means))
    panel.set_xticks(ticks, [f"run {index}" for index in ticks])
    panel.set_yticks(ticks, [f"run {index}" for index in ticks])
    panel.set_xlabel("the others of")
    panel.set_ylabel(f"{first} of")
    save(figure, path)
    plt.close(figure)


def main() -> int:
    """The command."""
    return run_command(cross_play)
