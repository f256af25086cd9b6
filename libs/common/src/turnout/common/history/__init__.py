"""What was scored, what really happened and who decided what: a port and its adapters."""
