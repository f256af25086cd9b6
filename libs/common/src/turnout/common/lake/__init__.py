"""Immutable data sets in Parquet: a port and its adapters."""
