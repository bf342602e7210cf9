"""The command `score`: rewards of recorded cases, without any model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from collm.errors import ConfigurationError

FORMS = ("paper", "released")
DIFFERENCES = """\
Where scores differ from those of the authors' released code:

  --reward released, which agrees with it on recorded cases but for
    writing     style_transitions: the list of phrases is this project's own
    coding      values are compared outside the program, as plain data: an object equal to everything passes no test,
                and a program that ends its process fails its tests instead of ending the run

  --reward paper, the default, by design
    coding      a call of the helper is one in the syntax tree; a comment or a string that mentions it is none
                a result of the helper that is thrown away costs 0.5 in every spelling
                a function goes to its end: a nested function does not cut it off; own imports and constants stay
                every assert of a test counts, those of several lines and in loops too
    writing     length is counted without blanks, transitions are whole words and earn by the logarithm, two texts
                without content words have nothing in common; arXiv has the ranges that the paper prints
    StrBuild    blocks beside the target are divided by the target, and no kind of block has to be used
    HouseBuild  covered and extra cells over those of the house, whatever their kind; spiders cost up to 0.2
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0 if every line was scored, 1 if some were not, 2 if the file could not be read."""
    parser = argparse.ArgumentParser(
        description="Score recorded cases again: one JSON object per line in and out.",
        epilog=DIFFERENCES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", type=Path, help="file with one case or transcript per line")
    parser.add_argument("--reward", choices=FORMS, help="form of the reward (default: paper, or as configured)")
    parser.add_argument("--config", type=Path, help="config.yaml of the run that transcripts are from")
    options = parser.parse_args(arguments)
    from collm.scoring.score import Scorer, configured_environment, find_config, score_lines

    try:
        lines = options.cases.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        print(f"{options.cases} cannot be read: {error}", file=sys.stderr)
        return 2
    config = options.config or find_config(options.cases)
    scorer = Scorer(options.reward, None, configured_environment(config) if config else None)
    failed = 0
    try:
        for result in score_lines(lines, scorer):
            failed += "reward" not in result
            print(json.dumps(result), flush=True)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        scorer.sandbox.close()
    return 1 if failed else 0
