"""Fixtures of scoring's tests."""

from scoring_stand import stand

__all__ = ["stand"]
