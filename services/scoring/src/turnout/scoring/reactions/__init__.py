"""What scoring does: keeps versions loaded, asks them, makes answers durable, and sends them on."""
