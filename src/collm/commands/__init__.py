"""The command `collm`: every module of this package is one of its commands, and its docstring says what it does.

A command is a module with a function `main` that reads `sys.argv` and returns the exit status. It imports what it needs
inside that function, so that `collm --help` does not wait for torch.
"""

from __future__ import annotations

import ast
import os
import sys
from importlib import import_module
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
BASE = CONFIGS / "base.yaml"
"""The configuration that is read before all others."""


def names() -> dict[str, str]:
    """All commands, each with the first line of its docstring."""
    paths = sorted(path for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")
    found = {}
    for path in paths:
        found[path.stem] = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    return found


def main() -> int:
    """Run the command that the first argument names."""
    known = names()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        width = max(map(len, known))
        print("usage: collm COMMAND ...\n\nLanguage models learn to work together. Commands:\n")
        print("\n".join(f"  {command:{width}}  {words}" for command, words in known.items()))
        print(
            "\n`collm COMMAND --help` says more; `collm fit --help` lists algorithms, environments and configurations."
        )
        return 0
    if name == "--version":
        import collm

        print(f"collm {collm.__version__}")
        return 0
    if name not in known:
        from difflib import get_close_matches

        near = get_close_matches(name, known, 1)
        remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
        print(f"error: collm has no command {name!r}; {remedy}", file=sys.stderr)
        return 2
    sys.argv = [f"{sys.argv[0]} {name}", *sys.argv[2:]]
    prepare()
    return import_module(f"{__name__}.{name}").main()


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


def helped(module: str, name: str, positional: bool = False) -> bool:
    """Print the short help of the command that is a function of `module`, and say so, if the arguments ask for it."""
    if not wants_help():
        return False
    from collm.runtime.quick_help import function_help

    print(function_help(module, name, positional))
    return True


def wants_help() -> bool:
    """Whether the arguments ask for a short help; `--help full` leaves it to the command itself."""
    if sys.argv[-2:] == ["--help", "full"]:
        sys.argv.pop()
        return False
    return len(sys.argv) > 1 and sys.argv[1] in ("-h", "--help")
