"""Decides which candidate is best, and whether it is better than the champion."""
