"""The model registry: a port and its adapters."""
