"""Where images end, and which files they read from: qemu-img makes them with every option, qemu-io writes to them."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
from pathlib import Path

import pytest
from conftest import need
from qemu_images import KINDS, Kind, content, make, qemu_img

from pybackup.core.errors import BusyError, SourceChangedError, SourceError
from pybackup.core.images.parts import ImageParts
from pybackup.core.system.image_lock import ImageLock
from pybackup.formats.image_layout import Role

SIZE = 3 << 20
MORE_KINDS = [
    *KINDS,
    Kind("qcow2", "qcow2", ("-o", "extended_l2=on,cluster_size=128k")),
    Kind("qcow2", "qcow2", ("-o", "preallocation=metadata")),
    Kind("qcow2", "qcow2", ("-o", "preallocation=falloc,lazy_refcounts=on")),
    Kind("qcow2", "qcow2", ("-o", "refcount_bits=1")),
    Kind("qcow2", "qcow2", ("-o", "data_file=disk.data")),
    Kind("qcow2", "qcow2", ("-o", "data_file=disk.data,data_file_raw=on")),
    Kind("qcow2", "qcow2", ("-c", "-o", "cluster_size=4k")),
    Kind("vmdk", "vmdk", ("-o", "subformat=twoGbMaxExtentFlat")),
    Kind("vmdk", "vmdk", ("-o", "compat6,zeroed_grain=on")),
    Kind("vhdx", "vhdx", ("-o", "block_size=1M,log_size=2M")),
    Kind("vpc", "vhd"),
    Kind("vpc", "vhd", ("-o", "subformat=fixed")),
    Kind("qed", "qed", ("-o", "cluster_size=4096,table_size=2")),
    Kind("parallels", "hdd", ("-o", "cluster_size=64k")),
]
WRITABLE = [kind for kind in MORE_KINDS if "streamOptimized" not in str(kind)]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("qemu-img", "qemu-io")
    monkeypatch.chdir(tmp_path)


def check(image: Path, image_format: str) -> list[str]:
    """All checks but QEMU's own; the names of the files."""
    parts = ImageParts.find(str(image), image_format)
    try:
        parts.check_lengths()
        parts.check_unchanged()
        return [Path(part.path).name for part in parts.parts]
    finally:
        parts.release()


def ends(image: Path, image_format: str) -> dict[str, int]:
    """How many bytes each file of an image must have."""
    parts = ImageParts.find(str(image), image_format)
    try:
        found: dict[str, int] = {}
        for part in parts.parts:
            scanned = list(part.layout.scan())
            found[part.path] = max([part.needs, *(end.end for end in scanned if not end.in_data_file)])
            in_data = max((end.end for end in scanned if end.in_data_file), default=0)
            for other in part.layout.files:
                if other.role is Role.DATA:
                    data = in_data
        for path in found:
            if path.endswith(".data"):
                found[path] = data
        return found
    finally:
        parts.release()


@pytest.mark.parametrize("size", [SIZE, SIZE - 512, 512])
@pytest.mark.parametrize("kind", MORE_KINDS, ids=str)
def test_what_is_whole_is_accepted_and_what_lacks_a_byte_is_not(tmp_path: Path, kind: Kind, size: int) -> None:
    image = make(tmp_path, kind, size=size) if size > 512 else tmp_path / f"disk.{kind.suffix}"
    if size == 512:
        (tmp_path / "disk.img").write_bytes(b"\7" * size)
        qemu_img("convert", "-f", "raw", "-O", kind.image_format, *kind.options, "disk.img", image)
    check(image, kind.image_format)
    for path, end in ends(image, kind.image_format).items():
        if not end:
            continue  # a descriptor
        file = Path(path)
        whole = file.read_bytes()
        if kind.image_format == "vpc" and "fixed" in str(kind):
            file.write_bytes(whole[:-1024] + whole[-512:])
        elif "streamOptimized" in str(kind):
            file.write_bytes(whole[:end] + whole[-1024:])
            check(image, kind.image_format)
            file.write_bytes(whole[: end - 1])
        else:
            file.write_bytes(whole[:end])
            check(image, kind.image_format)
            # Of compressed data it is told in which sector it ends, and not where.
            file.write_bytes(whole[: end - (512 if "-c" in kind.options else 1)])
        with pytest.raises(SourceError, match=f"{file.name}"):
            check(image, kind.image_format)
        file.write_bytes(whole)


@pytest.mark.parametrize("kind", WRITABLE, ids=str)
def test_what_a_guest_writes_to_is_accepted(tmp_path: Path, kind: Kind) -> None:
    image = tmp_path / f"disk.{kind.suffix}"
    options = [option for option in kind.options if option != "-c"]
    qemu_img("create", "-q", "-f", kind.image_format, *options, image, str(SIZE + 512))
    noise = random.Random(str(kind))
    for _ in range(3):
        words = ["qemu-io", "-f", kind.image_format]
        for _ in range(5):
            length = 512 * noise.randrange(1, 400)
            at = 512 * noise.randrange((SIZE - length) // 512)
            words += ["-c", f"{noise.choice(['write', 'write', 'write -z', 'discard'])} {at} {length}"]
        words += ["-c", f"write {SIZE} 512"]
        subprocess.run([*words, image], check=True, capture_output=True)
        check(image, kind.image_format)


def test_internal_snapshots_do_not_matter(tmp_path: Path) -> None:
    image = make(tmp_path, Kind("qcow2", "qcow2"))
    qemu_img("snapshot", "-c", "one", image)
    subprocess.run(["qemu-io", "-c", "write -P 9 0 4M", image], check=True, capture_output=True)
    check(image, "qcow2")


def json_name(**options: object) -> str:
    return f"json:{json.dumps(options)}"


@pytest.mark.parametrize(
    "make_name",
    [
        lambda base: str(base),
        lambda base: f"file:{base}",
        lambda base: json_name(driver="raw", file={"driver": "file", "filename": str(base)}),
        lambda base: json_name(**{"driver": "raw", "file.driver": "file", "file.filename": str(base)}),
        lambda base: json_name(driver="raw", offset=512, size=SIZE, file={"driver": "file", "filename": str(base)}),
        lambda base: json_name(driver="raw", file={"driver": "raw", "file": {"driver": "file", "filename": str(base)}}),
    ],
)
def test_whatever_a_raw_backing_file_is_called(tmp_path: Path, make_name: object) -> None:
    base = tmp_path / "base.img"
    base.write_bytes(content(SIZE + 1024))
    name = make_name(base)  # type: ignore[operator]
    qemu_img("create", "-q", "-f", "qcow2", "-b", name, "-F", "raw", tmp_path / "top.qcow2")
    assert check(tmp_path / "top.qcow2", "qcow2") == ["top.qcow2", "base.img"]
    with open(base, "rb") as file, ImageLock.for_writing(file.fileno(), "base"):
        with pytest.raises(BusyError, match=r"base\.img is in use"):
            check(tmp_path / "top.qcow2", "qcow2")


@pytest.mark.parametrize("lacking", [1, 512, 65536, SIZE])
@pytest.mark.parametrize("is_json", [False, True])
def test_a_raw_backing_file_that_is_shorter_than_the_disk(tmp_path: Path, lacking: int, is_json: bool) -> None:
    base = tmp_path / "base.img"
    base.write_bytes(random.Random(1).randbytes(SIZE))
    name = json_name(driver="raw", file={"driver": "file", "filename": str(base)}) if is_json else "base.img"
    qemu_img("create", "-q", "-f", "qcow2", "-b", name, "-F", "raw", "middle.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", "top.qcow2", str(2 * SIZE))
    os.truncate(base, SIZE - lacking)
    with pytest.raises(SourceError, match=rf"base\.img has [0-9,]+ bytes.*cut off.*truncate -s {SIZE} .*base\.img"):
        check(Path("top.qcow2"), "qcow2")
    os.truncate(base, SIZE)
    assert check(Path("top.qcow2"), "qcow2") == ["top.qcow2", "middle.qcow2", "base.img"]


@pytest.mark.parametrize("kind", [Kind("qcow2", "qcow2"), Kind("vmdk", "vmdk"), Kind("raw", "raw")], ids=str)
def test_what_lies_below_an_image_in_use_is_checked_all_the_same(tmp_path: Path, kind: Kind) -> None:
    base = make(tmp_path, kind)
    qemu_img("create", "-q", "-f", "qcow2", "-b", base.name, "-F", kind.image_format, "top.qcow2")

    def checked() -> list[str]:
        parts = ImageParts.find("top.qcow2", "qcow2", force_share=True)
        try:
            parts.check_lengths()
            assert "top.qcow2 is in use" in parts.warnings[0]
            return [image.path for image in parts.images]
        finally:
            parts.release()

    with open("top.qcow2", "rb") as file, ImageLock.for_writing(file.fileno(), "top"):
        assert checked() == ([] if kind.image_format == "raw" else [base.name])
        os.truncate(base, base.stat().st_size - 100_000)
        with pytest.raises(SourceError, match=base.name):
            checked()


def test_raw_backing_files_of_which_no_more_is_read(tmp_path: Path) -> None:
    """A disk that is shorter than what lies between, and a length that the name tells."""
    base = tmp_path / "base.img"
    base.write_bytes(random.Random(1).randbytes(SIZE))
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.img", "-F", "raw", "middle.qcow2", str(2 * SIZE))
    qemu_img("create", "-q", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", "top.qcow2", str(SIZE - 512))
    check(Path("top.qcow2"), "qcow2")
    told = json_name(driver="raw", size=SIZE, file={"driver": "file", "filename": str(base)})
    qemu_img("create", "-q", "-f", "qcow2", "-b", told, "-F", "raw", "told.qcow2", str(2 * SIZE))
    check(Path("told.qcow2"), "qcow2")
    os.truncate(base, SIZE - 1)
    with pytest.raises(SourceError, match=r"base\.img is too short"):
        check(Path("told.qcow2"), "qcow2")


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("nbd://host/base", "top.qcow2 reads from nbd://host/base: only files and block devices"),
        ("nbd+unix:///x?socket=y", "only files and block devices"),
        ("nbd:host:10809", "only files and block devices"),
        (json_name(driver="raw", file={"driver": "nbd", "host": "h", "port": "1"}), "reads from the driver nbd"),
        (json_name(driver="nbd", host="h", port="1"), "only files and block devices"),
        (json_name(driver="raw", file="node"), "only files and block devices|not understood"),
        (json_name(driver="raw", file={"driver": "file", "filename": "a", "pr-manager": "p"}), "option 'pr-manager'"),
        (json_name(driver="raw", offset=-1, file={"driver": "file", "filename": "a"}), "cannot be understood: -1"),
        ("json:[1]", "cannot be understood"),
        ("json:{", "cannot be understood"),
        ("missing.img", "missing.img: No such file"),
        ("/dev/zero", "/dev/zero: it is neither a file nor a block device"),
    ],
)
def test_what_cannot_be_locked_and_watched(tmp_path: Path, name: str, sentence: str) -> None:
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", tmp_path / "top.qcow2", "1M")
    with pytest.raises(SourceError, match=sentence):
        check(tmp_path / "top.qcow2", "qcow2")


def test_a_long_chain_of_all_formats(tmp_path: Path) -> None:
    make(tmp_path, Kind("vmdk", "vmdk", ("-o", "subformat=twoGbMaxExtentFlat")), "base")
    (tmp_path / "sub").mkdir()
    qemu_img("create", "-q", "-f", "vmdk", "-b", tmp_path / "base.vmdk", "-F", "vmdk", tmp_path / "sub" / "a.vmdk")
    lower = json_name(driver="vmdk", file={"driver": "file", "filename": str(tmp_path / "sub" / "a.vmdk")})
    qemu_img("create", "-q", "-f", "qcow2", "-b", lower, "-F", "vmdk", tmp_path / "c.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "c.qcow2", "-F", "qcow2", tmp_path / "d.qcow2")
    assert check(Path("d.qcow2"), "qcow2") == [
        "d.qcow2",
        "c.qcow2",
        "a.vmdk",
        "base.vmdk",
        "base-f001.vmdk",
    ]
    parts = ImageParts.find("d.qcow2", "qcow2")
    try:
        replaced = tmp_path / "base-f001.vmdk"
        replaced.rename(tmp_path / "before")
        replaced.write_bytes((tmp_path / "before").read_bytes())
        with pytest.raises(SourceChangedError, match=r"base-f001\.vmdk changed while it was read"):
            parts.check_unchanged()
    finally:
        parts.release()


def test_an_image_does_not_make_us_read_what_its_owner_may_not(tmp_path: Path) -> None:
    secret, image = tmp_path / "secret", tmp_path / "disk.vmdk"
    secret.write_bytes(bytes(1 << 20))
    secret.chmod(0o600)
    image.write_text(f'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 2048 FLAT "{secret}" 0\n')
    assert check(image, "vmdk") == ["disk.vmdk", "secret"]
    try:
        image.chmod(0o644)
        subprocess.run(["chown", "65534:65534", image], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot give a file away: {error.stderr.decode().strip()}")
    with pytest.raises(SourceError, match="secret, which the owner of that image may not read"):
        check(image, "vmdk")
    secret.chmod(0o644)
    assert check(image, "vmdk") == ["disk.vmdk", "secret"]


def test_a_part_of_a_parallels_disk(tmp_path: Path) -> None:
    image = make(tmp_path, Kind("parallels", "hdd"))
    (tmp_path / "DiskDescriptor.xml").write_text("<Storage><Image><GUID/></Image></Storage>")
    check(image, "parallels")
    (tmp_path / "DiskDescriptor.xml").write_text("<Storage><Image><GUID/></Image><Image/><Image></Image></Storage>")
    with pytest.raises(SourceError, match="is one of 2 images of a Parallels disk"):
        check(image, "parallels")


def test_more_extents_than_files_may_be_open_at_first(tmp_path: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    lines = ["# Disk DescriptorFile", "version=1", "parentCID=ffffffff", 'createType="twoGbMaxExtentFlat"']
    for number in range(200):
        (tmp_path / f"disk-f{number}.vmdk").write_bytes(bytes(512))
        lines.append(f'RW 1 FLAT "disk-f{number}.vmdk" 0')
    (tmp_path / "disk.vmdk").write_text("\n".join(lines))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 50, most))
    try:
        assert len(check(tmp_path / "disk.vmdk", "vmdk")) == 201
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
