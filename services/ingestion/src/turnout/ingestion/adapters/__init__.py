"""Reading files of every format as a stream of columns."""
