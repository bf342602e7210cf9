"""Functions as commands: their arguments are options, their docstring is what --help shows."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser, auto_cli

from collm.errors import ConfigurationError, TrainingError, shortened
from collm.runtime.configuration import StrictFiles


class _Parser(StrictFiles, ArgumentParser):
    pass


def run_command(function: Callable[..., None], **defaults: Any) -> int:
    """Call `function` with the arguments of the command line.

    The exit status is 0, 1 if runs failed, 2 for a mistake in the settings, and 130 if it was stopped.

    Args:
        function: What is called; `--config` reads its arguments from a file.
        defaults: Defaults in place of those of its signature.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # however it is stopped, no run is left behind
    try:
        auto_cli(function, as_positional=False, set_defaults=defaults, parser_class=_Parser)
    except (ConfigurationError, TrainingError) as error:
        print(f"\nerror: {shortened(str(error))}", file=sys.stderr)
        return 1 if isinstance(error, TrainingError) else 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
