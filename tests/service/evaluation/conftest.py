"""Fixtures of evaluation's tests."""

from __future__ import annotations

from warm import env, warm

__all__ = ["env", "warm"]
