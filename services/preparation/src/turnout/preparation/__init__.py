"""Decides what a pipeline's features are, and what is left to be learnt from data."""
