"""What a feature is: pure functions over Arrow columns and numpy arrays."""
