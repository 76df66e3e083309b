"""Marks of tests that need an extra, which `make test` installs."""

from __future__ import annotations

import importlib.util

import pytest

from zerokara.core.models import lite0
from zerokara.core.models.onnx_file import PACKAGES

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES), reason="the extra 'export' is not installed"
)
needs_lite0 = pytest.mark.skipif(not lite0.is_installed(), reason="the extra 'scores' is not installed")
