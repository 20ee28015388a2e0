"""Running QEMUs: the monitor, their disks, and backing these up by fleecing."""
