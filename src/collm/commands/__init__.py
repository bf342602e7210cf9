"""The command `collm`. What a command needs is imported when it runs, so that no help waits for torch."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

CONFIGS = Path(__file__).parents[1] / "configs"
BASE = CONFIGS / "base.yaml"
"""The configuration that is read before all others."""
FIT = Path(__file__).with_name("fit.py")
"""The script that trains one run of a study."""


class Command(NamedTuple):
    """A command of `collm`.

    Args:
        about: What it does, and a call of it.
        module: The module whose `main` it is.
        function: The function of that module whose arguments are the command's; empty if `main` has its own help.
        positional: Whether arguments of the function without a default are positional.
        given: What `main` is called with.
    """

    about: str
    module: str
    function: str = ""
    positional: bool = False
    given: tuple[Any, ...] = ()


COMMANDS = {
    "bench": Command(
        "Measure training speed against a plain implementation: collm bench run --config FILE",
        "collm.commands.bench",
    ),
    "ceiling": Command(
        "Measure how much of the return can be known at each turn: collm ceiling --config FILE --out DIR",
        "collm.commands.ceiling",
    ),
    "compare": Command(
        "Compare runs and untrained protocols on the same held-out tasks: collm compare --config FILE",
        "collm.studies.comparison",
        "compare",
        given=(BASE,),
    ),
    "cross_play": Command(
        "Teams with a mate missing, late or of another run: collm cross_play --runs '[A, B]' --out DIR",
        "collm.studies.cross_play",
        "cross_play",
    ),
    "fit": Command(
        "Train agents: collm fit --config FILE [--config FILE ...] [--name=value ...]",
        "collm.commands.fit",
        given=("fit",),
    ),
    "gradient": Command(
        "Measure noise and bias of policy gradients at fixed policies: collm gradient --config FILE --jobs 2",
        "collm.studies.gradient_test",
        "gradient_test",
        given=(FIT, BASE),
    ),
    "plan": Command(
        "Print the memory that a configuration needs on 1, 2 and 8 devices: collm plan --config FILE",
        "collm.commands.plan",
    ),
    "play": Command(
        "Play an environment with any team: collm play RUN --agent builder_2=human",
        "collm.serving.play",
        "play_command",
        positional=True,
    ),
    "predict": Command(
        "Play held-out tasks and keep the episodes: collm predict --config RUN/config.yaml --ckpt_path ...",
        "collm.commands.fit",
        given=("predict",),
    ),
    "replay": Command(
        "Show recorded episodes in one HTML page: collm replay RUN_OR_JSONL --out replay.html",
        "collm.replay.command",
    ),
    "report": Command(
        "Report a study of claims: collm report --study logs/studies/relay --out results/claims/relay",
        "collm.studies.report",
        "report",
    ),
    "score": Command(
        "Score recorded cases without any model: collm score cases.jsonl [--reward paper|released]",
        "collm.scoring.command",
    ),
    "serve": Command(
        "Serve the agents of a run as OpenAI-compatible endpoints: collm serve RUN",
        "collm.serving.command",
        "serve",
        positional=True,
    ),
    "study": Command(
        "Train methods with several seeds in parallel and compare them: collm study --config FILE --jobs 2",
        "collm.studies.study",
        "study",
        given=(FIT, BASE),
    ),
    "test": Command(
        "The same as validate, under the name that Lightning gives to the last evaluation: collm test --config ...",
        "collm.commands.fit",
        given=("test",),
    ),
    "validate": Command(
        "Evaluate agents on held-out tasks: collm validate --config RUN/config.yaml --ckpt_path FILE.ckpt",
        "collm.commands.fit",
        given=("validate",),
    ),
}


def run(name: str) -> int:
    """Run a command with the arguments of the process, or print its short help if they ask for it."""
    command = COMMANDS[name]
    if command.function and wants_help():
        from collm.runtime.quick_help import function_help

        print(function_help(command.module, command.function, command.positional))
        return 0
    return import_module(command.module).main(*command.given)


def main() -> int:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: collm COMMAND ...\n\nLanguage models learn to work together. Commands:\n")
        print("\n".join(f"  {known:{width}}  {command.about}" for known, command in COMMANDS.items()))
        print(
            "\n`collm COMMAND --help` says more; `collm fit --help` lists algorithms, environments and configurations."
        )
        return 0
    if name == "--version":
        import collm

        print(f"collm {collm.__version__}")
        return 0
    if name not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(name, COMMANDS, 1)
        remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}."
        print(f"error: collm has no command {name!r}; {remedy}", file=sys.stderr)
        return 2
    sys.argv = [f"{sys.argv[0]} {name}", *sys.argv[2:]]
    prepare()
    return run(name)


def prepare() -> None:
    """Let configurations name classes in the current folder, and find `configs/...` where there is no such folder."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    sys.argv[1:] = [_packaged(argument) for argument in sys.argv[1:]]


def _packaged(argument: str) -> str:
    """An argument that names a configuration of this package, with its path if it is not in the current folder."""
    option, sign, path = argument.rpartition("=")
    inside = CONFIGS.parent / path
    is_here = not path.startswith("configs/") or Path(path).exists() or not inside.is_file()
    return argument if is_here else f"{option}{sign}{inside}"


def wants_help() -> bool:
    """Whether the arguments ask for a short help; `--help full` leaves it to the command itself."""
    if sys.argv[-2:] == ["--help", "full"]:
        sys.argv.pop()
        return False
    return len(sys.argv) > 1 and sys.argv[1] in ("-h", "--help")
