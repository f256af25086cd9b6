"""Real servers for development, tests and benchmarks; nothing of it is needed to run Turnout."""
