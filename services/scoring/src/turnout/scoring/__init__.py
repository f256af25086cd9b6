"""Decides which version answers a request, and never lets the answer be late because a model is."""
