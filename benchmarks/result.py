"""Print what a benchmark has measured, with the machine on which it was measured. Not a program."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from zerokara.core.machine import describe_machine


def print_result(result: Mapping[str, Any]) -> None:
    """Print a result as JSON. `machine` comes first, with the class of the processor."""
    print(json.dumps({"machine": describe_machine(), **result}, indent=2))
