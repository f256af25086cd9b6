"""Long work under a lease: a port and its adapters."""
