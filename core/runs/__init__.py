"""A whole backup: the course that each takes, and the ways in which its disks are come by."""
