"""What monitoring decides, on plain data: no clock, no store, no bus."""
