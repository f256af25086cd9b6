"""The ways to ask over HTTP: the friendly routes, the Open Inference Protocol, outcomes."""
