"""The guest itself, through the QEMU guest agent: its filesystems are frozen for an instant, and thawed in any case."""
