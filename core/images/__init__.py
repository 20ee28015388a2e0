"""Images of other formats, through QEMU's programs: told apart, checked, read and made."""
