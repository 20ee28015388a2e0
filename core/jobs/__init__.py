"""One job a module, with its states, speed limit, progress and errors: backup, restore, verify, compare."""
