"""Compile what is imported until the tests start once, also with PYTHONDONTWRITEBYTECODE, and not in every process.

tests/conftest.py imports this module before those of zerokara, and restores the setting when the tests are collected.
"""

from __future__ import annotations

import sys

DONT_WRITE = sys.dont_write_bytecode
sys.dont_write_bytecode = False
