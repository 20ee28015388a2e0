"""What happens: the map of `core`.

Terms. A *disk* is what is backed up, a *drive* what an archive holds of it. A *cluster* is 64 KiB of a drive, the unit
of every decision; a *block* is 4 KiB of a cluster, stored unless it is zero; an *extent* is a header and the stored
blocks of up to 58 clusters. A *device* reads and writes a disk; a *sink* takes the bytes of an archive; a *target*
takes a restored drive. A *place* is what a user named: a path, a URL, a stream, a command. A *guest* is whoever uses a
disk while it is backed up. *Old data* is what a guest is about to overwrite. A *job* does one thing once, and can be
paused, slowed and cancelled.

The way of a disk into an archive:
    endpoints.sources -> devices -> jobs.backup -> archive.intake -> archive.writer (formats.archive) -> sinks, stores
The way of a guest's write into an archive:
    nbd.server -> cow.copy_before_write -> cow.guest_copies -> cow.old_data -> archive.intake, and on as above
The way back:
    archive.open -> archive.stream (own_word), or archive.by_index -> jobs.walk -> jobs.restore -> endpoints.targets
The way back while a guest uses the disk:
    archive.open_disks -> cow.copy_before_access (nbd.server, jobs.fill) -> devices.raw, and cow.presence_file

The rooms, each of which imports only from those below it (`make lint` holds them to it):
    runs        a whole backup, or restore: the course that each takes, and the ways in which disks are come by
    history     many archives: which belong together, which are kept, and the removal of the rest
    libvirt     the disks of a domain of libvirt, over virsh and the NBD server of its QEMU
    live        a server of disks in use: its backups, its control socket, and the client of both
    mount       archives as files, through FUSE
    qemu        the disks of a running QEMU, over its monitor
    jobs        backup, restore, verify, compare: what all jobs have, and each one
    endpoints   what a user names at either end, opened: sources, restore targets
    archive     archives being written and read
    cow         copy-before-write, and its counterpart, copy-before-access
    guest       the guest itself: its filesystems are frozen for an instant, through its agent
    images      other programs' image formats: told apart, checked, read and made by QEMU's programs
    nbd         the NBD protocol over sockets, client and server
    secrets     who may read archives: keys that were given, and encryption for recipients
    stores      object stores and SFTP servers
    sinks       files, pipes and commands that an archive is written to
    devices     disks: raw files and block devices, memory, the standard input
    system      what Linux offers, one thing a module
    places      what a user names at either end, told apart: paths, URLs, streams, commands
and beside them errors, device (the protocol of all devices), inflight (ranges that are being changed), tasks, trace.
"""
