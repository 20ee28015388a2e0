"""What the manual pages of commands say of the environment, of files, and where to read on: material of generate.py.

The examples are those of --help, in pybackup.cli.examples.
"""

from __future__ import annotations

EVERYWHERE = {
    "PYBACKUP_DEBUG": "1: show where a failure that nobody foresaw came from.",
}
"""What every command takes from its environment."""

_PROGRESS = {
    "TERM, NO_COLOR": "`--progress auto` draws no bars where TERM is `dumb`; with NO_COLOR nothing is coloured.",
}
_STORES = {
    "PYBACKUP_PATIENCE": "For how many seconds a store that fails is asked again (120): `pybackup-stores`(7).",
    "AWS_*, SSH_AUTH_SOCK...": "Credentials and endpoints of stores: `pybackup-stores`(7).",
}
_IMAGES = {
    "PATH": "Where `qemu-nbd` and `qemu-img` are looked for, which read and write images of other formats.",
}
_KEYS = {
    "PYBACKUP_IDENTITY": "A file with identities, or several between colons, where no `--identity` is given:"
    " `pybackup-secrets`(7).",
}
_READ = {**_KEYS, **_STORES, **EVERYWHERE}

ENVIRONMENT: dict[str, dict[str, str]] = {
    "pybackup": EVERYWHERE,
    "run": {
        "TMPDIR": "Where temporary images go unless `--fleece` says (else `/var/tmp`), and parts of uploads that are"
        " larger than fits into memory (else `/tmp`).",
        "XDG_STATE_HOME": "Where uploads that are under way are remembered; else `~/.local/state`.",
        "LIBVIRT_DEFAULT_URI": "Whose domains `libvirt:` means, unless `--connect` says.",
        "TZ": "The time zone of {now}.",
        "PYBACKUP_ARCHIVE, PYBACKUP_ERROR...": "Given to the commands of `--on-success` and `--on-failure`:"
        " `pybackup-unattended`(7).",
        **_KEYS,
        **_IMAGES,
        **_STORES,
        **_PROGRESS,
        **EVERYWHERE,
    },
    "restore": {**_KEYS, **_IMAGES, **_STORES, **_PROGRESS, **EVERYWHERE},
    "verify": {**_KEYS, **_STORES, **_PROGRESS, **EVERYWHERE},
    "info": _READ,
    "list": {"TZ": "The time zone of the times.", **_READ},
    "prune": {
        "TZ": "The time zone in which hours, days, weeks, months and years begin.",
        "XDG_STATE_HOME": "Where uploads that are under way are remembered; else `~/.local/state`.",
        **_READ,
        **_PROGRESS,
    },
    "config": _READ,
    "compare": {**_KEYS, **_IMAGES, **_STORES, **_PROGRESS, **EVERYWHERE},
    "merge": {
        "TMPDIR": "Where parts of uploads go that are larger than fits into memory; else `/tmp`.",
        "XDG_STATE_HOME": "Where uploads that are under way are remembered; else `~/.local/state`.",
        **_KEYS,
        **_STORES,
        **_PROGRESS,
        **EVERYWHERE,
    },
    "serve": {
        "XDG_RUNTIME_DIR": "Where the private folder of the sockets is made; else `$TMPDIR`, or `/tmp`.",
        "TMPDIR": "Where old data is fleeced unless `--fleece` says; else `/var/tmp`.",
        "NOTIFY_SOCKET, LISTEN_FDS, LISTEN_PID": "Set by systemd, which is told when the server is ready, and whose"
        " sockets are taken instead of `--socket`.",
        **_KEYS,
        **_IMAGES,
        **_STORES,
        **EVERYWHERE,
    },
    "files": {
        "LIBGUESTFS_BACKEND...": "Those of libguestfs; the backend is `direct` unless this says otherwise.",
        "PATH": "Where `guestfish` is looked for.",
        **_READ,
    },
    "boot": {
        "DISPLAY, WAYLAND_DISPLAY": "Where QEMU's window is shown.",
        "PATH": "Where `qemu-system-x86_64` is looked for.",
        "TMPDIR": "Where what the machine writes goes, in files without a name; else `/var/tmp`.",
        **_READ,
    },
    "mount": _READ,
    "keygen": EVERYWHERE,
    "ctl": EVERYWHERE,
    "completion": EVERYWHERE,
    "help": EVERYWHERE,
}
"""Of every command what it takes from its environment, or gives to its children."""

FILES: dict[str, dict[str, str]] = {
    "verify": {".pybackup-verified": "In a folder of archives: which of them were verified, and when."},
    "run": {
        ".NAME.partial": "Beside ARCHIVE: what it is until it is complete. What a killed run leaves, the next one"
        " removes.",
        "/etc/pybackup/NAME.toml": "Where the examples keep job files: `pybackup-job`(5).",
        "/var/tmp/pybackup-XXXXXXXXXXXX/": "With qmp: and libvirt: the private folder of a run, while it lives.",
        "~/.local/state/pybackup/indexes/": "The indexes of encrypted archives, by which `--incremental` goes where"
        " there is no identity: `pybackup-secrets`(7).",
        "~/.local/state/pybackup/uploads/": "A file for every upload to an object store, while it is under way.",
    },
    "restore": {
        ".NAME.partial": "Beside TARGET: what it is until it is complete.",
        "TARGET.restoring": "With `--live`: what of TARGET is there already; removed when all is.",
        "NAME.partial": "What a restore that failed has written, where it has written anything; a later one that"
        " succeeds removes it.",
    },
    "merge": {
        ".NAME.partial": "Beside OUT: what it is until it is complete. What a killed merge leaves, the next one"
        " removes.",
        "~/.local/state/pybackup/uploads/": "A file for every upload to an object store, while it is under way.",
    },
    "prune": {
        ".pybackup-lock": "In PLACE, while archives are removed: where a folder itself cannot be locked.",
        ".pybackup-verified": "In PLACE: which archives were verified, and when.",
    },
    "serve": {
        "$XDG_RUNTIME_DIR/pybackup.XXXXXXXX/": "The private folder of `nbd.sock` and `control.sock`, where no other"
        " place is given. What a killed server leaves, the next one removes.",
    },
    "ctl": {
        "$XDG_RUNTIME_DIR/pybackup.XXXXXXXX/control.sock": "The control socket of a server that was given no"
        " `--control`; the server prints its path.",
    },
    "completion": {
        "/etc/bash_completion.d/, ~/.local/share/bash-completion/completions/": "Where bash looks for scripts.",
        "/usr/local/share/zsh/site-functions/": "Where zsh does, and in the other folders of $fpath.",
        "~/.config/fish/completions/": "Where fish does.",
    },
}
"""Of a command the files that it makes or looks for, beside those that are named to it."""

SEE_ALSO: dict[str, tuple[str, ...]] = {
    "run": (
        *("pybackup-restore/1", "pybackup-verify/1", "pybackup-job/5", "pybackup-archive/5", "pybackup-images/7"),
        *("pybackup-libvirt/7", "pybackup-live/7", "pybackup-proxmox/7", "pybackup-secrets/7", "pybackup-stores/7"),
        "pybackup-unattended/7",
    ),
    "restore": (
        *(
            "pybackup-recover/7",
            "pybackup-run/1",
            "pybackup-verify/1",
            "pybackup-images/7",
            "pybackup-proxmox/7",
            "pybackup-stores/7",
        ),
    ),
    "verify": ("pybackup-run/1", "pybackup-list/1", "pybackup-compare/1", "pybackup-archive/5", "pybackup-stores/7"),
    "info": ("pybackup-config/1", "pybackup-verify/1", "pybackup-archive/5", "pybackup-stores/7"),
    "list": ("pybackup-info/1", "pybackup-prune/1", "pybackup-verify/1", "pybackup-stores/7"),
    "prune": ("pybackup-list/1", "pybackup-run/1", "pybackup-stores/7", "pybackup-unattended/7"),
    "config": ("pybackup-info/1", "pybackup-run/1", "pybackup-proxmox/7"),
    "compare": ("pybackup-verify/1", "pybackup-images/7"),
    "merge": (
        *("pybackup-run/1", "pybackup-verify/1", "pybackup-archive/5", "pybackup-proxmox/7", "pybackup-stores/7"),
    ),
    "serve": ("pybackup-ctl/1", "pybackup-run/1", "pybackup-control/7", "pybackup-images/7", "pybackup-live/7"),
    "files": ("pybackup-mount/1", "pybackup-restore/1", "pybackup-recover/7"),
    "boot": ("pybackup-serve/1", "pybackup-restore/1", "pybackup-verify/1", "pybackup-recover/7"),
    "mount": ("pybackup-restore/1", "pybackup-serve/1", "pybackup-recover/7", "pybackup-stores/7"),
    "keygen": ("pybackup-run/1", "pybackup-restore/1", "pybackup-secrets/7"),
    "ctl": ("pybackup-serve/1", "pybackup-run/1", "pybackup-control/7", "pybackup-live/7"),
    "completion": (),
    "help": (),
}
"""Of every command the pages to read on, beside pybackup(1): NAME/SECTION."""

GUIDES = {
    "pybackup-live/7": "disks in use: reflink clones, `serve`, running QEMUs, libvirt, the guest agent",
    "pybackup-history/7": "nights that cost what changed, and how long they stay",
    "pybackup-recover/7": 'from "the machine is gone" to "it runs": live restores, parts of disks',
    "pybackup-libvirt/7": "domains of libvirt, running or not, and how to get them back",
    "pybackup-images/7": "qcow2, vmdk and other formats, and NBD exports",
    "pybackup-stores/7": "archives in object stores, on SFTP servers, in pipes",
    "pybackup-secrets/7": "encrypted archives, and their keys",
    "pybackup-unattended/7": "cron, systemd, hooks, metrics, reports for programs",
    "pybackup-proxmox/7": "backups that go to Proxmox VE, or come from there",
    "pybackup-control/7": "the protocol that steers a running server",
    "pybackup-api/7": "the library",
    "pybackup-job/5": "job files",
    "pybackup-archive/5": "every byte of an archive",
}
"""Every page that is written by hand, and what it is about."""
