"""What Linux offers, one thing a module: locks, direct input and output, the page cache, sparse files, children."""
