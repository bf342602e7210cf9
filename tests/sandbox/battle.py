"""Attacks on the sandbox of another interpreter, perhaps as another user: told what to do as JSON, answers as JSON.

Uses nothing but the standard library and `collm.sandbox`, and runs under an interpreter that has neither pytest nor
torch.
"""

from __future__ import annotations

import json
import os
import sys

order = json.load(sys.stdin)
sys.path.insert(0, order["packages"])

from collm.errors import ConfigurationError  # noqa: E402
from collm.sandbox.case import Case  # noqa: E402
from collm.sandbox.pool import Sandbox  # noqa: E402

sandbox = Sandbox(workers=2, call_seconds=2.0, judgement_seconds=8.0, max_timeouts=1, layers=tuple(order["layers"]))
answer = {"user": os.getuid(), "base": sys.base_prefix}
try:
    protections = sandbox.protections
except ConfigurationError as error:
    answer["refused"] = str(error)
else:
    answer["layers"], answer["missing"] = protections.layers, protections.missing
    facts = f"TRAINER = {os.getpid()}\n"
    verdicts = sandbox.judge_all([Case(facts + source, "f", order["test"]) for source in order["programs"]])
    answer["passed"] = [verdict.passed for verdict in verdicts]
sandbox.close()
print(json.dumps(answer))
