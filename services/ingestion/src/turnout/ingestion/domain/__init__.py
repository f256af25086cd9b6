"""What a source's rows are: plain functions over bytes and Arrow columns."""
