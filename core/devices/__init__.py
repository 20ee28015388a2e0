"""The kinds of disk that pybackup can read and write; one kind a module."""
