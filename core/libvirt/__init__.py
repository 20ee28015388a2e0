"""Domains of libvirt: their disks, running or switched off, over virsh and the NBD server of their QEMU."""
