#!/bin/sh
# `make demo`: a small real disk, backed up, verified, restored and compared. Everything happens in a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
echo "pybackup is $(command -v pybackup); the disk and its archive are in $folder while this lasts."

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

mkdir files
for number in 1 2 3 4 5 6 7 8; do
    seq "$number" 7 400000 >"files/numbers-$number"
    head -c 1500000 /dev/urandom >"files/noise-$number"
done
PATH="$PATH:/usr/sbin:/sbin"
if command -v mke2fs >/dev/null; then
    truncate -s 256M disk.img
    mke2fs -q -t ext4 -d files disk.img
    echo "disk.img: an ext4 filesystem of 256 MiB with 16 files"
else
    echo "mke2fs (Debian: e2fsprogs) is missing: disk.img is made of data and holes instead"
    cat files/* >disk.img
    truncate -s 256M disk.img
fi
printf 'cores: 2\nmemory: 2048\n' >qemu-server.conf

show pybackup run scsi0=disk.img -c qemu-server.conf --verify -v disk.vma.zst
show ls -l --block-size=K disk.img disk.vma.zst
show pybackup verify disk.vma.zst
show pybackup info --map disk.vma.zst
show pybackup config disk.vma.zst
show pybackup restore disk.vma.zst restored.img
show cmp disk.img restored.img
printf 'a change' | dd of=restored.img bs=1 seek=70000000 conv=notrunc status=none
printf '\nSomebody writes to the restored disk, and compare finds where:\n'
printf '\n$ %s\n' 'pybackup compare disk.vma.zst restored.img'
if pybackup compare disk.vma.zst restored.img; then
    echo "the change was not found" >&2
    exit 1
fi
if command -v zstd >/dev/null; then
    printf '\n$ %s\n' 'zstd -dc disk.vma.zst | pybackup verify -'
    zstd -dc disk.vma.zst | pybackup verify -
fi
printf '\nThe demo is over; the disk and its archive are removed. What was installed for it stays in .demo: make clean removes it.\n'
