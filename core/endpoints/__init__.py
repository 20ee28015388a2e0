"""What a user names at either end: the source of a backup, and the target of a restore."""
