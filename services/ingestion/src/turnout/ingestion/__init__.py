"""Decides what a source's rows are: a batch of the lake, or quarantined with a reason."""
