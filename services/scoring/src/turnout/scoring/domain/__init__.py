"""What scoring decides, as plain functions and objects over plain data; time comes in as an argument."""
