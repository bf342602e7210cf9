"""Turn a function into a command: its arguments become options, its docstring the text of --help."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

from collm.errors import ConfigurationError, TrainingError, shortened
from collm.runtime.terminal import printable


def run_command(
    function: Callable[..., None],
    positional: bool = False,
    arguments: list[str] | None = None,
    stopped: str = "give the same command again to continue",
    **defaults: Any,
) -> int:
    """Call `function` with the arguments of the command line; returns the exit status, see `exit_status`.

    Args:
        function: The function to call; `--config` reads its arguments from a file.
        positional: Whether arguments without a default are positional.
        arguments: Arguments that replace those of the process.
        stopped: What is said when it is interrupted.
        defaults: Defaults that replace those of its signature.
    """

    def call() -> None:
        from jsonargparse import ArgumentParser, auto_cli

        from collm.runtime.configuration import StrictFiles

        class Parser(StrictFiles, ArgumentParser):
            pass

        auto_cli(function, args=arguments, as_positional=positional, set_defaults=defaults, parser_class=Parser)

    return exit_status(call, stopped)


def exit_status(call: Callable[[], None], stopped: str = "give the same command again to continue") -> int:
    """Run `call`; 0, 1 if runs failed, 2 for a mistake in the settings, and 130 if the command was interrupted."""
    # raises KeyboardInterrupt, so child runs are ended
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        call()
    except (ConfigurationError, TrainingError) as error:
        print(f"\nerror: {printable(shortened(str(error)))}", file=sys.stderr)
        return 1 if isinstance(error, TrainingError) else 2
    except KeyboardInterrupt:
        print(f"\nstopped; {stopped}", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0
