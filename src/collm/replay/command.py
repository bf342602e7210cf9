"""The command `replay`: recorded episodes as one HTML page."""

from __future__ import annotations

import argparse

from collm.runtime.command import exit_status


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Write recorded episodes to one HTML page that needs no network.")
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN_OR_JSONL",
        help="folder of a run of fit or predict, folder of a comparison, or a transcript; NAME=... names it",
    )
    parser.add_argument("--out", default="replay.html", help="the page (default: %(default)s)")
    parser.add_argument("--title", default="", help="its title (default: the names of the runs)")
    args = parser.parse_args()

    def replay() -> None:
        from collm.replay.page import write_page

        count = write_page(args.runs, args.out, args.title)
        print(f"{count} episodes are in {args.out}; open it in a browser")

    return exit_status(replay)
