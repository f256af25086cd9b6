"""Where CPU work runs: a port and its adapters."""
