"""The page of the study of ResourceGathering: what was learned, against what is possible without messages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from collm.environments.games.gathering_bound import SilentBound
from collm.environments.games.gathering_expert import expert, solved_in
from collm.environments.games.gathering_maps import Map
from collm.environments.games.gathering_rules import Rules, begin, missing, resolve
from collm.environments.games.resource_gathering import ResourceGathering
from collm.runtime.files import write_text

Interval = tuple[float, float, float]
COLUMNS = {"success": "success", "return": "return", "messages": "messages", "useful_messages": "useful messages"}
ROWS = ("facts, before", "facts", "none, before", "none")


def silent_bound(game: ResourceGathering, options: dict[str, Any]) -> SilentBound:
    """The bound of `game`, which was made with `options`."""
    size = Map.of(game.tasks("train")[0].data).size
    return SilentBound(game.rules, size, options.get("distance", 8), options.get("level", 2))


def silent_expert(game: ResourceGathering, bound: SilentBound) -> float:
    """Share of the held-out maps that two agents solve which search along the best walks and do not talk."""
    rules = Rules(**{**vars(game.rules), "communication": "none"})
    solved = 0
    for task in game.tasks("eval"):
        state = begin(rules, Map.of(task.data))
        walks = [bound.best(index, start)[1] for index, start in enumerate(state.map.starts)]
        for turn in range(rules.horizon):
            search = [walk[min(turn, len(walk) - 1)] for walk in walks]
            state, _, _ = resolve(rules, state, list(expert(rules, state, search).values()))
        solved += not missing(rules, state.gathered)
    return solved / len(game.tasks("eval"))


def verdicts(cells: dict[str, dict[str, Interval]], bound: float) -> list[tuple[str, bool]]:
    """The rule of configs/studies/resource_gathering.yaml applied to intervals (mean, low, high) by row and metric."""
    before, after, silent = cells["facts, before"], cells["facts"], cells["none"]
    return [
        ("talking is learned", after["success"][1] > before["success"][2]),
        ("talking is needed", after["success"][1] > bound > silent["success"][2]),
        ("messages become useful", after["useful_messages"][1] > before["useful_messages"][2]),
    ]


def page(table: dict[str, Any], bound: float, silent: float, telling: float) -> str:
    """The page as Markdown.

    Args:
        table: The table.json of the study's comparison.
        bound: Largest success without messages.
        silent: Success of the scripted team that does not talk, on the held-out maps.
        telling: Success of the scripted team that tells what it sees, on the held-out maps.
    """
    cells = {row["label"]: row["cells"] for row in table["table"]}
    lines = [
        "# ResourceGathering with the embedded tiny model",
        "",
        "```bash",
        "python tools/gathering.py",
        "```",
        "",
        f"{len(table['tasks'])} held-out maps, {table['episodes_per_task']} episodes each; means over seeds and "
        f"episodes with 95 % bootstrap intervals; {table['date'][:10]}. The rule is in "
        "`configs/studies/resource_gathering.yaml`.",
        "",
        "| team | " + " | ".join(COLUMNS.values()) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for label in ROWS:
        numbers = [
            f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in (cells[label][name] for name in COLUMNS)
        ]
        name = label if "before" in label else f"{label}, after training"
        lines.append(f"| {name} | " + " | ".join(numbers) + " |")
    lines += [
        f"| scripted, tells what it sees | {telling:.2f} | | | |",
        f"| scripted, searches in silence | {silent:.2f} | | | |",
        f"| any team without messages, at most | {bound:.2f} | | | |",
        "",
        *(f"- {claim}: **{'yes' if holds else 'no'}**" for claim, holds in verdicts(cells, bound)),
        "",
        "![Return on held-out maps while they learn](curves.png)",
    ]
    return "\n".join(lines) + "\n"


def write_page(study: Path, out: Path) -> None:
    """Write the page of a finished study, whose configuration is `study`, into the folder `out`."""
    settings = yaml.safe_load(study.read_text())
    experiment = yaml.safe_load((study.parents[2] / settings["configs"][0]).read_text())
    options = experiment["data"]["environment"]["init_args"]
    game = ResourceGathering(**options)
    bound = silent_bound(game, options)
    maps = [Map.of(task.data) for task in game.tasks("eval")]
    telling = sum(solved_in(game.rules, one) is not None for one in maps) / len(maps)
    comparison = Path(settings["out"]) / "comparison"
    table = json.loads((comparison / "table.json").read_text())
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(comparison / "curves.png", out)
    write_text(out / "README.md", page(table, bound.value(), silent_expert(game, bound), telling))
    write_text(out / "table.json", json.dumps(table, indent=2))
