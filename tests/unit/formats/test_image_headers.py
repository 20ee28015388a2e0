"""What headers say: sizes that can be understood in two ways, parents that nobody would read, and nonsense."""

from __future__ import annotations

import struct
from itertools import islice
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybackup.formats.errors import FormatError
from pybackup.formats.image_layout import ImageBytes, Layout, OtherFile, Role
from pybackup.formats.image_layouts import image_layout

FORMATS = ("qcow2", "qcow", "vmdk", "vmdk extent", "vdi", "vhdx", "vpc", "qed", "parallels")


def layout(content: bytes, image_format: str) -> Layout:
    found = image_layout(ImageBytes(lambda at, length: content[at : at + length], len(content)), image_format)
    for end in found.scan():
        assert end.end >= 0
    return found


def footer(creator: bytes, size: int, geometry: tuple[int, int, int], kind: int = 2) -> bytes:
    return struct.pack(
        *(">8sIIQI4sI4sQQHBBI", b"conectix", 2, 0x10000, 512 if kind != 2 else 2**64 - 1, 0, creator, 0x10000),
        *(b"Wi2k", size, size, *geometry, kind),
    ).ljust(512, b"\0")


CYLINDER = 4 * 17 * 512


@pytest.mark.parametrize("creator", [b"vbox", b"vs  ", b"qem2", b"win ", b"d2v ", b"tap\0", b"vpc ", b"qemu", b"CTXS"])
def test_the_end_of_a_vhd_is_never_cut_off(creator: bytes) -> None:
    size = 301 * CYLINDER + 6144
    found = layout(bytes(size) + footer(creator, size, (301, 4, 17)), "vpc")
    assert (found.size, found.options) == (size, {"force_size_calc": "current_size"})


@pytest.mark.parametrize("creator, by_size", [(b"vbox", False), (b"vpc ", False), (b"win ", True), (b"tap\0", True)])
def test_a_vhd_whose_geometry_is_larger(creator: bytes, by_size: bool) -> None:
    size = 300 * CYLINDER
    large = layout(bytes(size + CYLINDER) + footer(creator, size, (301, 4, 17)), "vpc")
    assert large.size == (size if by_size else size + CYLINDER)
    assert large.options == {"force_size_calc": "current_size" if by_size else "chs"}
    small = layout(bytes(size) + footer(creator, size, (301, 4, 17)), "vpc")
    assert small.size == size


def test_vhds_that_are_refused() -> None:
    for kind, sentence in ((4, "differencing image"), (3, "dynamic header"), (6, "of type 6")):
        with pytest.raises(FormatError, match=sentence):
            layout(footer(b"win ", 1 << 20, (1, 1, 1), kind) + bytes(4096), "vpc")
    with pytest.raises(FormatError, match="first and its last sector say different things"):
        layout(footer(b"win ", 1 << 20, (1, 1, 1), 3) + bytes(1 << 20) + footer(b"win ", 1 << 20, (1, 1, 1)), "vpc")
    with pytest.raises(FormatError, match="no multiple of 512"):
        layout(bytes(1 << 20) + footer(b"win ", (1 << 20) - 1, (1, 1, 1)), "vpc")
    with pytest.raises(FormatError, match="no VHD"):
        layout(bytes(4096), "vpc")


def vdi(kind: int = 1, parent: bytes = bytes(16)) -> bytes:
    head = b"\0" * 64 + struct.pack("<IIII", 0xBEDA107F, 0x10001, 400, kind) + bytes(260)
    head += struct.pack("<7I", 512, 1024, 0, 0, 0, 512, 0) + struct.pack("<QIIII", 1 << 20, 1 << 20, 0, 1, 0)
    return (head + bytes(48) + parent).ljust(512, b"\0") + b"\xff" * 512


def test_vdis() -> None:
    assert layout(vdi(), "vdi").size == 1 << 20
    for kind, parent in ((4, bytes(16)), (1, b"p" * 16), (2, b"p" * 16)):
        with pytest.raises(FormatError, match="differencing image"):
            layout(vdi(kind, parent), "vdi")
    with pytest.raises(FormatError, match="undo file"):
        layout(vdi(3), "vdi")


def vhdx(bits: int, size: int = 1 << 20, state: int = 0) -> bytes:
    def guid(text: str) -> bytes:
        return UUID(text).bytes_le

    image = bytearray(2 << 20)
    image[:8] = b"vhdxfile"
    struct.pack_into("<4sIII", image, 192 << 10, b"regi", 0, 2, 0)
    regions = (("2DC27766-F623-4200-9D64-115E9BFD4A08", 384), ("8B7CA206-4790-4B9A-B8FE-575F050F886E", 320))
    for number, (name, at) in enumerate(regions):
        struct.pack_into("<16sQII", image, (192 << 10) + 16 + 32 * number, guid(name), at << 10, 1 << 16, 1)
    struct.pack_into("<8sHH", image, 320 << 10, b"metadata", 0, 3)
    items = (
        ("CAA16737-FA36-4D43-B3B6-33F0AA44E76B", struct.pack("<II", 1 << 20, bits)),
        ("2FA54224-CD1B-4876-B211-5DBED83BF4B8", struct.pack("<Q", size)),
        ("8141BF1D-A96F-4709-BA47-F233A8FAAB5F", struct.pack("<I", 512)),
    )
    for number, (name, content) in enumerate(items):
        place = 4096 + 64 * number
        entry = struct.pack("<16sIIII", guid(name), place, len(content), 4, 0)
        image[(320 << 10) + 32 + 32 * number : (320 << 10) + 64 + 32 * number] = entry
        image[(320 << 10) + place : (320 << 10) + place + len(content)] = content
    struct.pack_into("<Q", image, 384 << 10, (1 << 20) | state)
    return bytes(image)


def test_vhdxs() -> None:
    assert max(end.end for end in layout(vhdx(0, state=6), "vhdx").scan()) == 2 << 20
    with pytest.raises(FormatError, match="differencing image"):
        layout(vhdx(2), "vhdx")
    with pytest.raises(FormatError, match="differencing image"):
        layout(vhdx(0, state=7), "vhdx")


def parallels(blocks: int, sectors: int, magic: bytes = b"WithouFreSpacExt") -> bytes:
    return struct.pack("<16sIIIIIQIII", magic, 2, 16, 1, 2048, blocks, sectors, 0, 1, 0).ljust(4096, b"\0")


def test_a_parallels_image_whose_table_is_too_short() -> None:
    assert layout(parallels(2, 4096), "parallels").size == 2 << 20
    with pytest.raises(FormatError, match="too few for its size"):
        layout(parallels(1, 4096), "parallels")
    assert layout(parallels(1, (1 << 32) + 2048, b"WithoutFreeSpace"), "parallels").size == 1 << 20


def descriptor(*extents: str, kind: str = "twoGbMaxExtentFlat", more: str = "parentCID=ffffffff") -> bytes:
    lines = ["# Disk DescriptorFile", "version=1", "CID=1", more, f'createType="{kind}"', *extents, ""]
    return "\n".join(lines).encode()


def test_the_files_of_a_vmdk() -> None:
    told = descriptor('RW 2048 FLAT "a,b.vmdk" 8', 'RW 10 VMFS "c.vmdk"', 'RW 4 SPARSE "/d/ü.vmdk"', "# RW 3 FLAT")
    found = layout(told, "vmdk")
    assert found.size == 2062 * 512
    assert found.files == (
        OtherFile(Role.EXTENT, "a,b.vmdk", "raw", 2056 * 512),
        OtherFile(Role.EXTENT, "c.vmdk", "raw", 5120),
        OtherFile(Role.EXTENT, "/d/ü.vmdk", "vmdk extent", disk_size=2048),
    )
    child = layout(descriptor('RW 1 FLAT "a" 0', more='parentCID=12\nparentFileNameHint="../base.vmdk"'), "vmdk")
    assert child.files[-1] == OtherFile(Role.BACKING, "../base.vmdk", "vmdk")


@pytest.mark.parametrize(
    "told, sentence",
    [
        (descriptor('RDONLY 2048 FLAT "a.vmdk" 0'), "QEMU passes over the extent"),
        (descriptor("RW 2048 ZERO"), "QEMU passes over the extent"),
        (descriptor('RW 2048 VMFSRDM "a-rdm.vmdk"'), "QEMU passes over the extent"),
        (descriptor('NOACCESS 2048 FLAT "a.vmdk" 0'), "QEMU passes over the extent"),
        (descriptor("RW x FLAT"), "cannot be read"),
        (descriptor('RW 9999999999999999 FLAT "a" 0'), "cannot be read"),
        (descriptor('RW 0 FLAT "a.vmdk" 0'), "cannot be"),
        (descriptor('RW 5 FLAT "a.vmdk"'), "cannot be"),
        (descriptor('RW 5 SESPARSE "a.vmdk"'), "SESPARSE, of which cannot be told"),
        (descriptor('RW 5 FLAT "a.vmdk" 0', more="parentCID=12345678"), "a delta, .* does not name the parent"),
        (
            descriptor('RW 5 FLAT "a.vmdk" 0', more="#" * 11000 + '\nparentFileNameHint="a"'),
            "QEMU does not find the name of its parent",
        ),
        (b"# Disk DescriptorFile\nversion=1\n", "does not say what kind"),
        (b"# Disk DescriptorFile\n" + b"#" * (1 << 20), "more than 1,048,576 bytes"),
        (b"KDMV", "header is not complete"),
        (b"COWD".ljust(12, b"\0") + struct.pack("<IIII", 2048, 8, 4, 1) + bytes(2048), "an extent or a delta"),
    ],
)
def test_vmdks_that_are_refused(told: bytes, sentence: str) -> None:
    with pytest.raises(FormatError, match=sentence):
        layout(told, "vmdk")


def hosted(text: bytes, capacity: int = 128) -> bytes:
    head = struct.pack(*("<4sIIQQQQIQQQB4sH", b"KDMV", 1, 3, capacity, 128, 1, 20, 512, 0, 21, 128, 0, b"\n \r\n", 0))
    return head.ljust(512, b"\0") + text.ljust(20 * 512, b"\0") + bytes(4096)


def test_a_vmdk_in_one_file() -> None:
    one = 'RW 128 SPARSE "old name.vmdk"'
    assert layout(hosted(descriptor(one)), "vmdk").size == 1 << 16
    # What stands in its own descriptor of its own extent, QEMU does not look at.
    assert layout(hosted(descriptor('RDONLY 128 SPARSE "generated-stream.vmdk"')), "vmdk").size == 1 << 16
    assert layout(hosted(b""), "vmdk extent").size == 1 << 16
    with pytest.raises(FormatError, match="an extent or a delta of a disk that another file describes"):
        layout(hosted(b""), "vmdk")
    with pytest.raises(FormatError, match="names other files"):
        layout(hosted(descriptor(one, one)), "vmdk")
    with pytest.raises(FormatError, match="smaller size than its descriptor"):
        layout(hosted(descriptor('RW 129 SPARSE "a"')), "vmdk")
    nested = hosted(descriptor('RW 5 FLAT "a" 0'), capacity=0)
    assert layout(nested, "vmdk").files == (OtherFile(Role.EXTENT, "a", "raw", 2560),)


def test_a_qcow2_that_has_what_nobody_knows() -> None:
    head = bytearray(104)
    struct.pack_into(">4sIQIIQIIQQIIQ", head, 0, b"QFI\xfb", 3, 0, 0, 16, 1 << 20, 0, 1, 1 << 16, 0, 0, 0, 0)
    struct.pack_into(">I", head, 100, 104)
    whole = bytes(head).ljust(2 << 16, b"\0")
    assert layout(whole, "qcow2").size == 1 << 20
    with pytest.raises(FormatError, match="a part of its tables lies behind the end"):
        layout(bytes(head), "qcow2")
    struct.pack_into(">Q", head, 24, (1 << 20) + 100)
    with pytest.raises(FormatError, match="no multiple of 512"):
        layout(bytes(head).ljust(2 << 16, b"\0"), "qcow2")
    struct.pack_into(">Q", head, 24, 1 << 20)
    for features, sentence in ((1 << 5, "features that are not known"), (4, "does not say in which")):
        struct.pack_into(">Q", head, 72, features)
        with pytest.raises(FormatError, match=sentence):
            layout(bytes(head).ljust(2 << 16, b"\0"), "qcow2")


MAGICS = (
    *(b"QFI\xfb\0\0\0\3", b"QFI\xfb\0\0\0\1", b"KDMV", b"COWD", b"conectix", b"vhdxfile", b"QED\0"),
    *(hosted(b"")[:80], footer(b"win ", 1 << 20, (1, 1, 1), 3), parallels(2, 4096)[:64], vdi()),
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(MAGICS),
    st.binary(max_size=200),
    st.integers(0, 100),
    st.sampled_from(FORMATS),
)
def test_nonsense_is_refused_with_a_sentence(magic: bytes, rest: bytes, at: int, image_format: str) -> None:
    content = bytearray(magic.ljust(1024, b"\0"))
    content[min(len(magic), at) : min(len(magic), at) + len(rest)] = rest
    found = image_layout_or_none(bytes(content), image_format)
    assert found is None or found.size >= 0


def image_layout_or_none(content: bytes, image_format: str) -> Layout | None:
    try:
        found = image_layout(ImageBytes(lambda at, length: content[at : at + length], len(content)), image_format)
        assert all(end.end >= 0 for end in islice(found.scan(), 1000))
    except FormatError:
        return None
    return found
