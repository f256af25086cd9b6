"""What the adapters on Cassandra share: settings, the connection, tables made at start."""
