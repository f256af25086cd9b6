"""How a service is run: poll, react, done; health, logs, shutdown."""
