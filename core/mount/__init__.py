"""Archives as files: a tree of what they hold, and the FUSE filesystem that shows it."""
