"""What comes of archives once there are several: which belong together, which are kept, which are removed."""
