"""Report a study of claims: `python tools/report.py --study logs/studies/relay --out results/claims/relay`."""

import sys

from collm.commands import run

if __name__ == "__main__":
    sys.exit(run("report"))
