"""Train agents: collm fit --config FILE [--config FILE ...] [--name=value ...]"""

from __future__ import annotations

import sys

from collm.commands import BASE, prepare, wants_help


def main(subcommand: str | None = None) -> int:
    """Check the installed versions, then run the command line.

    Args:
        subcommand: What to run; None if the first argument says it.
    """
    from collm.errors import ConfigurationError
    from collm.runtime.versions import check_versions

    try:
        check_versions()
    except ConfigurationError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 2
    if subcommand and wants_help():
        from collm.runtime.quick_help import training_help

        print(training_help(subcommand))
        return 0
    prepare()
    from collm import cli  # imports everything else

    if subcommand:
        sys.argv.insert(1, subcommand)
    return cli.main(BASE)


if __name__ == "__main__":
    sys.exit(main())
