"""What was asked: the commands, their progress and their exit codes."""
