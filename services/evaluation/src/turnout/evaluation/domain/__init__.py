"""Metrics, their uncertainty, and the rule that decides; pure computation."""
