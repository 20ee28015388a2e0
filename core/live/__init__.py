"""A server of disks in use: its backups, its control socket, and the client's side of both."""
