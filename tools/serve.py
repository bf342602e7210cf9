"""Serve the agents of a run as OpenAI-compatible endpoints: `python tools/serve.py RUN`."""

import sys

from collm.commands import run

if __name__ == "__main__":
    sys.exit(run("serve"))
