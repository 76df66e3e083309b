"""Program of tests/test_start.py: import all programs named, and print as JSON which modules each is the first to need.

Several programs share one process, because most of what they import is the same.
"""

from __future__ import annotations

import importlib
import json
import sys

added: dict[str, list[str]] = {}
for name in sys.argv[1:]:
    before = set(sys.modules)
    importlib.import_module(f"zerokara.{name}")
    added[name] = sorted(set(sys.modules) - before)
print(json.dumps(added))
