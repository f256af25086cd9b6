"""Where monitoring keeps what it counted."""
