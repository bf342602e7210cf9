"""Train methods with several seeds in parallel and compare them: `python tools/study.py --config FILE --jobs 2`."""

import sys

from collm.commands import run

if __name__ == "__main__":
    sys.exit(run("study"))
