"""One engine that applies a codec or a network to any number of files, for the command line and Ray alike."""
