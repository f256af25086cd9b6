"""What two services must agree on: events, the pipeline file, ports with their adapters, and how a service runs."""
