"""What the bytes are: VMA, seekable zstd, the cluster index, the NBD wire. No sockets, no clocks, no threads."""
