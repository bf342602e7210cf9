"""Turn a function into a command: its arguments become options, its docstring the text of --help."""

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

    The exit status is 0, 1 if runs failed, 2 for a mistake in the settings, and 130 if the command was interrupted.

    Args:
        function: The function to call; `--config` reads its arguments from a file.
        defaults: Defaults that replace those of its signature.
    """
    # raises KeyboardInterrupt, so child runs are ended
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        auto_cli(function, as_positional=False, set_defaults=defaults, parser_class=_Parser)
    except (ConfigurationError, TrainingError) as error:
        print(f"\nerror: {shortened(str(error))}", file=sys.stderr)
        return 1 if isinstance(error, TrainingError) else 2
    except KeyboardInterrupt:
        print("\nstopped; give the same command again to continue", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0
