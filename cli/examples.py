"""What is shown below the options of a command: the units of its values, and examples. Loaded for --help alone.

The manual pages show the same, nine columns from the left of eighty: no line of an example is longer than 71.
"""

from __future__ import annotations

UNITS = {
    "SIZE": "bytes, or with K, M, G or T kibibytes to tebibytes (1024, not 1000): 512, 64K, 1.5G.",
    "RATE": "as SIZE, a second: 50M are 50 MiB/s; 0 means no limit.",
    "DURATION": "seconds, or with m, h or d minutes, hours or days: 90, 10m, 2h.",
}
"""What stands for a value in the usage, and what can be written there."""

EXAMPLES: dict[str, dict[str, str]] = {
    "run": {
        "One disk": "pybackup run disk.img disk.vma.zst",
        "Two disks of a machine, and its configuration": (
            "pybackup run scsi0=a.img scsi1=/dev/vg0/b \\\n    -c qemu-server.conf vm1.vma.zst"
        ),
        "Read back and checked before it gets its name, at 50 MiB/s": (
            "pybackup run --verify --speed 50M disk.img disk.vma.zst"
        ),
        "The disks of a running QEMU, and those of a running server": (
            "pybackup run qmp:/run/vm1.qmp vm1.vma.zst\npybackup run serve:/run/vm/control.sock vm2.vma.zst"
        ),
        "A domain of libvirt, running or switched off; and all of them": (
            "pybackup run libvirt:web /backups/web-{now}.vma.zst\n"
            "pybackup run --all libvirt: '/backups/{name}-{now}.vma.zst'"
        ),
        "From a pipe, to a command, to an object store": (
            "zcat disk.img.gz | pybackup run disk=- --size 20G disk.vma.zst\n"
            "pybackup run disk.img '|ssh host \"cat > disk.part\"' \\\n"
            "    --on-success 'ssh host mv disk.part disk.vma.zst'\n"
            "pybackup run disk.img s3://backups/disk.vma.zst"
        ),
        "Encrypted, for whoever has the identity of one of two recipients": (
            "pybackup run disk.img disk.vma.zst.age \\\n    --recipients-file /etc/pybackup/recipients"
        ),
        "Each night what has changed, and old ones go": (
            "pybackup run --incremental --keep-daily 7 --keep-weekly 4 disk.img \\\n"
            "    '/backups/disk-{now:%Y%m%d}.vma.zst'"
        ),
        "What a job file says": "pybackup run --job /etc/pybackup/vm1.toml",
    },
    "restore": {
        "One drive, to a new file": "pybackup restore disk.vma.zst back.img",
        "All drives as NAME.raw, and the configurations, into a folder": (
            "pybackup restore vm1.vma.zst folder/ --with-config"
        ),
        "Some drives, each to a place of its own": (
            "pybackup restore vm1.vma.zst scsi0=a.qcow2 scsi1=/dev/vg0/b --force"
        ),
        "Onto another machine": (
            "pybackup restore vm1.vma.zst --drive scsi0 \\\n    '|ssh host \"dd of=/dev/sdb bs=1M conv=fsync\"'"
        ),
        "At once, over NBD, while it fills": ("pybackup restore --live vm1.vma.zst new.raw --socket /run/vm/nbd.sock"),
        "The first MiB of a drive": "pybackup restore vm1.vma.zst - --drive scsi0 --length 1M > head",
        "An encrypted archive": "pybackup restore --identity key.txt vm1.vma.zst.age folder/",
        "What damage has left": "pybackup restore --skip-damaged vm1.vma.zst rest/",
    },
    "keygen": {
        "On the machine that shall be able to restore": "pybackup keygen -o key.txt",
        "A second key, for the safe": "pybackup keygen > paper.txt",
    },
    "verify": {
        "All archives of a folder, with a line for each": "pybackup verify /backups",
        "Those that were not read for a month; a twentieth of each, at random": (
            "pybackup verify --older-than 30d /backups\npybackup verify --sample 5% s3://backups/vm1/"
        ),
        "An archive in an object store, and the archive inside as any zstd gives it": (
            "pybackup verify s3://backups/vm1.vma.zst\nzstd -dc vm1.vma.zst | pybackup verify -"
        ),
    },
    "info": {
        "What is in it, and where": "pybackup info --map vm1.vma.zst",
        "The names of all drives, for a script": "pybackup info --json vm1.vma.zst | jq -r '.drives[].name'",
    },
    "list": {
        "The archives of a folder, and of a prefix of an object store": (
            "pybackup list /backups\npybackup list s3://backups/vm1"
        ),
        "The broken ones, for a script": (
            "pybackup list --json /backups |\n    jq -r '.archives[] | select(.broken) | .name'"
        ),
    },
    "prune": {
        "What would be done, and why": "pybackup prune --dry-run --keep-daily 7 --keep-weekly 4 /backups",
        "A week, then four more weeks, then a year of months": (
            "pybackup prune --keep-daily 7 --keep-weekly 4 --keep-monthly 12 \\\n    /backups"
        ),
        "All of the last thirty days": "pybackup prune --keep-within 30d s3://backups/vm1",
        "Seven nights of which each holds only changes, the first made full": (
            "pybackup prune --keep-daily 7 --merge /backups"
        ),
    },
    "config": {
        "The only one, to read": "pybackup config vm1.vma.zst",
        "One of several, into a file": "pybackup config vm1.vma.zst qemu-server.conf > qemu-server.conf",
    },
    "compare": {
        "The disk that an archive was made of": "pybackup compare disk.vma.zst disk.img",
        "Two drives of several": "pybackup compare vm1.vma.zst scsi0=a.qcow2 scsi1=/dev/vg0/b",
    },
    "merge": {
        "A full archive of the last night, which needs the others no more": (
            "pybackup merge vm1-2026-01-31.vma.zst vm1-january.vma.zst"
        ),
        "Parents that lie elsewhere, read back before it gets its name": (
            "pybackup merge s3://backups/new.vma.zst full.vma.zst \\\n    --parents s3://backups/old --verify"
        ),
        "A backup of Proxmox, made seekable and protected": (
            "pybackup merge vzdump-qemu-100.vma.zst vm100.vma.zst\n"
            "ssh pve cat /var/lib/vz/dump/vzdump-qemu-100.vma.zst \\\n    | pybackup merge - vm100.vma.zst"
        ),
    },
    "mount": {
        "Look into a backup, and copy the disk out": (
            "mkdir m\npybackup mount --background vm1.vma.zst m\ncp --sparse=always m/scsi0.raw .\nfusermount3 -u m"
        ),
        "All nights in a folder, or in a bucket": "pybackup mount /backups m\npybackup mount s3://backups/vm1/ m",
    },
    "serve": {
        "Two disks, to be used over NBD and backed up meanwhile": (
            "pybackup serve --control /run/vm/control.sock \\\n"
            "    --socket /run/vm/nbd.sock root=/vm/root.img data=/vm/data.img\n"
            "pybackup run serve:/run/vm/control.sock vm.vma.zst"
        ),
        "Any part of an archive, read-only": "pybackup serve vm1.vma.zst",
        "To try by hand whether a backup boots": "pybackup serve vm1.vma.zst --writable",
    },
    "files": {
        "Which filesystems there are, and what lies in one": (
            "pybackup files vm1.vma.zst\npybackup files vm1.vma.zst / --device /dev/sda1"
        ),
        "One file back, of a guest whose filesystems are found by its fstab": (
            "pybackup files vm1.vma.zst /etc/fstab --to ."
        ),
    },
    "boot": {
        "Watch a backup boot": "pybackup boot vm1.vma.zst",
        "A proof for a cron job, that fails where no login is offered": (
            "pybackup boot --check 'login:' --timeout 300 vm1.vma.zst"
        ),
        "A Windows machine with UEFI, to be seen by VNC": (
            "pybackup boot vm1.vma.zst --uefi --bus sata --memory 4G --vnc :1"
        ),
    },
    "ctl": {
        "What runs, slower, not at all": (
            "pybackup ctl /run/vm/control.sock status\n"
            "pybackup ctl /run/vm/control.sock speed 20M\n"
            "pybackup ctl /run/vm/control.sock cancel"
        ),
        "A backup": "pybackup ctl /run/vm/control.sock backup vm.vma.zst --verify",
    },
    "completion": {
        "For all users of bash, which needs the package bash-completion": (
            "pybackup completion bash > /etc/bash_completion.d/pybackup"
        ),
        "For zsh, in a folder of $fpath": (
            "pybackup completion zsh \\\n    > /usr/local/share/zsh/site-functions/_pybackup"
        ),
        "For oneself, in fish": "pybackup completion fish > ~/.config/fish/completions/pybackup.fish",
    },
    "help": {"What a command does": "pybackup help restore"},
}
"""Of every command what is done, and the command lines that do it."""
