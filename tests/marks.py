"""Marks of single cases of a test."""

from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """Of a test's cases, one for `make test-slow`."""
    return pytest.param(*values, marks=pytest.mark.slow)
