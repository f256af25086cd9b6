"""Which row trains and which evaluates: pure functions over arrays."""
