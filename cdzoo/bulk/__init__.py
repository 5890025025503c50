"""Any number of files through a codec or a network."""
