"""The newest features of an entity, and scores known in advance: a port and its adapters."""
