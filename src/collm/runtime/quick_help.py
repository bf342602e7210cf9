"""Help that is read from source files instead of imported ones, so that it appears at once."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
WIDTH = 110


def function_help(module: str, name: str, positional: bool = False) -> str:
    """The help of a command that is a function: its docstring, and its arguments with their defaults.

    Args:
        module: Dotted name of the module that holds the function.
        name: Name of the function.
        positional: Whether arguments without a default are positional; they are shown in capitals.
    """
    path = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    described, _, listed = (ast.get_docstring(function) or "").partition("\nArgs:\n")
    texts = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE))
    arguments = function.args.args
    defaults = [None] * (len(arguments) - len(function.args.defaults)) + list(function.args.defaults)
    lines = [described.strip(), "", "Arguments, also in a file given with --config:"]
    for argument, default in zip(arguments, defaults, strict=True):
        kind = ast.unparse(argument.annotation) if argument.annotation else ""
        label = argument.arg.upper() if positional and default is None else f"--{argument.arg}"
        lines.append(f"  {label} {kind}" + ("" if default is None else f" (default: {ast.unparse(default)})"))
        lines.append(_filled(" ".join(texts.get(argument.arg, "").split()), 6, 6))
    lines += ["", "`--help full` also lists the arguments within these."]
    return "\n".join(lines)


def training_help(command: str) -> str:
    """What `fit` and its relatives can be given: classes of this package and configuration files."""
    lines = [
        f"usage: collm {command} --config FILE [--config FILE ...] [--name=value ...]",
        "",
        "Files stack: later ones and single arguments win. `--print_config` prints what a command would use.",
        "",
        "  --config FILE            a configuration of below, of yours, or RUN/config.yaml",
        "  --ckpt_path FILE         continue, or evaluate, from a checkpoint: RUN/checkpoints/last.ckpt",
        "  --model CLASS            the algorithm; --model.help CLASS lists its arguments",
        "  --data.environment CLASS the environment; --data.environment.help CLASS lists its arguments",
        "  --trainer.max_epochs N   length of a run; an epoch is --data.rollouts_per_epoch rollouts",
        "  --seed_everything N      seed of everything",
        "  --help full              every argument (imports everything, so it takes seconds)",
    ]
    for title, folder in (("Algorithms", "algorithms"), ("Environments", "environments"), ("Samplers", "samplers")):
        lines += ["", f"{title}:"]
        lines += [f"  {name:20} {words}" for name, words in sorted(classes_of(PACKAGE / folder))]
    lines += ["", "Configurations, also found where the package is installed:"]
    configs = PACKAGE / "configs"
    for inside in sorted(path for path in configs.iterdir() if path.is_dir()):
        names = ", ".join(sorted(path.stem for path in inside.glob("*.yaml")))
        lines.append(_filled(f"configs/{inside.name}/: {names}", 2, 6))
    return "\n".join(lines)


_NEEDED = {
    "MultiAgentModule": {"training_step"},
    "Environment": {"reset", "step"},
    "Sampler": {"joint_actions"},
}
"""Methods that a class needs, by what it derives from."""


def classes_of(folder: Path) -> Iterator[tuple[str, str]]:
    """Complete classes under `folder` that a configuration can name, with the first sentence of their docstrings."""
    parsed = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))]
    found = {node.name: node for tree in parsed for node in tree.body if isinstance(node, ast.ClassDef)}

    def lacking(name: str) -> set[str] | None:
        """Methods that a class still lacks; None if it derives from none of those above."""
        if name in _NEEDED:
            return set(_NEEDED[name])
        if name not in found:
            return None
        inherited = [lacking(ast.unparse(base)) for base in found[name].bases]
        if all(one is None for one in inherited):
            return None
        methods = [part for part in found[name].body if isinstance(part, ast.FunctionDef)]
        unfinished = {method.name for method in methods if _is_unfinished(method)}
        return (set().union(*filter(None, inherited)) - {method.name for method in methods}) | unfinished

    for name, node in found.items():
        if name not in _NEEDED and not name.startswith("_") and lacking(name) == set():
            words = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
            yield name, words if len(words) <= WIDTH - 22 else words[: WIDTH - 25] + "..."


def _is_unfinished(method: ast.FunctionDef) -> bool:
    """Whether a method is abstract, or does nothing but raise an error."""
    body = method.body[1:] if ast.get_docstring(method) else method.body
    raises = len(body) == 1 and isinstance(body[0], ast.Raise)
    return raises or any("abstractmethod" in ast.unparse(one) for one in method.decorator_list)


def _filled(text: str, first: int, rest: int) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=" " * first, subsequent_indent=" " * rest)
