"""Serve the agents of a run as OpenAI-compatible endpoints: `python tools/serve.py RUN`."""

import sys

from collm.commands.serve import main

if __name__ == "__main__":
    sys.exit(main())
