"""The message bus: a port and its adapters."""
