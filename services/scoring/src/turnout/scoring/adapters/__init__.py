"""Where versions run, how they are tried, and the local files scoring keeps."""
