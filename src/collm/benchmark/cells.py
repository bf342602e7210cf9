"""What is measured for the table in the README: workloads, and ratios between two of them, a peer or the floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

NEW_TOKENS = {"tiny": 64, "smollm2": 32}
# With SmolLM2's chat template around them both make prompts of about 64 tokens.
PROMPT_WORDS = {"tiny": 64, "smollm2": 33}


@dataclass(frozen=True)
class Work:
    """One rollout and its update.

    Args:
        model: `tiny` (the benchmark's random model) or `smollm2`.
        algorithm: Name of a file in configs/algorithms.
        agents: Number of agents.
        turns: Turns of an episode.
        samples: Joint samples of the first turn.
        generations: Episodes of each task, or branches of a rollout tree.
        parameters: `separate` or `lora`.
        tree: Whether every joint action branches.
        micro_batch: Tokens of one forward and backward pass, in place of the default.
    """

    model: str = "tiny"
    algorithm: str = "collm_cc"
    agents: int = 2
    turns: int = 1
    samples: int = 16
    generations: int = 1
    parameters: str = "separate"
    tree: bool = False
    micro_batch: int | None = None

    @property
    def tasks(self) -> int:
        return self.samples // self.generations

    @property
    def new_tokens(self) -> int:
        return NEW_TOKENS[self.model]

    def arguments(self, configs: Path, model_path: str) -> list[str]:
        """Arguments of `fit`."""
        settings = {
            "data.environment.num_agents": self.agents,
            "data.environment.horizon": self.turns,
            "data.environment.prompt_words": PROMPT_WORDS[self.model],
            "data.tasks_per_rollout": self.tasks,
            "data.num_generations": self.generations,
            "model.parameters": self.parameters,
        }
        with_critic = not self.algorithm.startswith("ma")
        networks = ["model.policy", "model.critic.model"] if with_critic else ["model.policy"]
        for network in networks:
            settings[f"{network}.path"] = model_path
            if self.parameters == "lora":
                settings[f"{network}.lora_rank"] = 16
        settings["model.policy.min_new_tokens"] = settings["model.policy.max_new_tokens"] = self.new_tokens
        if self.micro_batch:
            settings["model.tokens_per_micro_batch"] = self.micro_batch
        if self.tree:
            settings["data.sampler"] = "collm.samplers.tree.Tree"
        files = [configs / "algorithms" / f"{self.algorithm}.yaml", configs / "environments" / "workload.yaml"]
        return [f"--config={path}" for path in files] + [f"--{name}={value}" for name, value in settings.items()]


@dataclass(frozen=True)
class Cell:
    """A ratio of the table.

    Args:
        name: Its group and its own name, `floor/tiny, 1 turn`.
        work: What is measured here.
        against: `floor`; `overhead`, then it is the share of a round that is no model call; `comlrl:maac` and the like,
            the peer and its algorithm; `work` or `memory`, then `other` is measured too, for time and for peak memory.
        target: What the ratio should reach: at least this against a peer, at most this otherwise.
        other: What `work` is divided by.
        quantity: What is divided where two processes take turns: `seconds` or `update_seconds`.
    """

    name: str
    work: Work
    against: str
    target: float
    other: Work | None = None
    quantity: str = "seconds"

    @property
    def of_peer(self) -> bool:
        return ":" in self.against


def cells() -> list[Cell]:
    """All ratios of the table, cheap ones first."""
    tiny, smollm2 = Work(), Work(model="smollm2", samples=8)
    found: list[Cell] = []
    targets = {
        ("tiny", 1): (0.8, 0.8),
        ("smollm2", 1): (1.0, 0.75),
        ("tiny", 4): (0.5, 0.5),
        ("smollm2", 4): (0.5, 0.5),
    }
    for base in (tiny, smollm2):
        for turns in (1, 4):
            for parameters, target in zip(("separate", "lora"), targets[base.model, turns], strict=True):
                samples = 4 if (base.model, turns) == ("smollm2", 4) else base.samples
                work = replace(base, turns=turns, parameters=parameters, samples=samples)
                found.append(Cell(f"floor/{base.model}, {plural(turns, 'turn')}, {parameters}", work, "floor", target))
    for few, many in ((2, 4), (4, 8)):
        work, other = replace(tiny, turns=many), replace(tiny, turns=few)
        found.append(Cell(f"growth/update, {few} to {many} turns", work, "work", 2.2, other, "update_seconds"))
        work, other = replace(tiny, agents=many), replace(tiny, agents=few)
        found.append(Cell(f"growth/iteration, {few} to {many} agents", work, "work", 2.1, other))
    found.append(Cell("overhead/tiny, 1 turn", tiny, "overhead", 0.25))
    found.append(Cell("overhead/smollm2, 1 turn", smollm2, "overhead", 0.10))
    # one joint history of eight agents at a time: what is held of a pass is then alike on both sides
    one = replace(smollm2, parameters="lora", samples=4, agents=1, micro_batch=512)
    found.append(Cell("memory/smollm2, lora, 1 to 8 agents", replace(one, agents=8), "memory", 1.5, one))
    for algorithm, peer in (("collm_cc", "maac"), ("collm_dc", "iac")):
        for agents, turns, target in ((2, 1, 5.0), (2, 4, 5.0), (8, 1, 8.0)):
            work = replace(tiny, algorithm=algorithm, agents=agents, turns=turns)
            name = f"comlrl/{peer}, tiny, {plural(agents, 'agent')}, {plural(turns, 'turn')}"
            found.append(Cell(name, work, f"comlrl:{peer}", target))
        work = replace(smollm2, algorithm=algorithm)
        found.append(Cell(f"comlrl/{peer}, smollm2, 2 agents, 1 turn", work, f"comlrl:{peer}", 2.5))
    group = replace(tiny, algorithm="magrpo", generations=16)
    found.append(Cell("comlrl/magrpo, tiny, 16 generations", group, "comlrl:magrpo", 1.3))
    tree = replace(tiny, algorithm="magrpo", samples=4, generations=4, turns=3, tree=True)
    found.append(Cell("comlrl/magrpo, tiny, tree of 3 turns and 4 branches", tree, "comlrl:magrpo", 4.0))
    for base, target in ((tiny, 1.3), (smollm2, 1.2)):
        work = replace(base, algorithm="magrpo", agents=1, generations=4)
        found.append(Cell(f"trl/grpo, {base.model}, 4 generations", work, "trl:grpo", target))
    return found


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number > 1 else "")


def chosen(all_cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells whose name begins with one of `only`, or all where there is none."""
    return [cell for cell in all_cells if not only or any(cell.name.startswith(start) for start in only)]
