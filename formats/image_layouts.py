"""The layout of an image by its format."""

from __future__ import annotations

from collections.abc import Callable

from .errors import FormatError
from .image_blocks import parallels_layout, vdi_layout
from .image_layout import ImageBytes, Layout
from .image_qcow import qcow_layout, qed_layout
from .image_qcow2 import qcow2_layout
from .image_vhd import vhd_layout
from .image_vhdx import vhdx_layout
from .image_vmdk import SPARSE_EXTENT, vmdk_extent_layout, vmdk_layout

_LAYOUTS: dict[str, Callable[[ImageBytes], Layout]] = {
    "qcow2": qcow2_layout,
    "qcow": qcow_layout,
    "vmdk": vmdk_layout,
    SPARSE_EXTENT: vmdk_extent_layout,
    "vdi": vdi_layout,
    "vhdx": vhdx_layout,
    "vpc": vhd_layout,
    "qed": qed_layout,
    "parallels": parallels_layout,
}
"""By QEMU's names of the formats."""


def image_layout(image: ImageBytes, image_format: str) -> Layout:
    """The layout of an image; a raw one is its bytes (FormatError)."""
    if image_format == "raw":
        return Layout(image.size, lambda: iter(()))
    describe = _LAYOUTS.get(image_format)
    if describe is None:
        raise FormatError(f"the format {image_format} is not known")
    return describe(image)
