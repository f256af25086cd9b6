"""Decides which row of a feature set trains and which evaluates."""
