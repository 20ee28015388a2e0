"""The course of a merge: of chains, full archives, those of other programs; and what is refused before it begins."""

from __future__ import annotations

import asyncio
import gzip
import random
from pathlib import Path

import foreign_vma
import pytest
from archives import decode, encode, open_index
from chains import Night, make_night
from command_line import listing

from pybackup.core.archive.identity import identity_of_index
from pybackup.core.errors import ArchiveError, CancelledError, PybackupError, RequestError, TargetError
from pybackup.core.jobs.merge import MergeJob
from pybackup.core.places.kinds import LocalPath, ShellCommand
from pybackup.core.runs.merge import MergeRequest, merge
from pybackup.core.trace import Trace
from pybackup.formats.vma_layout import CLUSTER_SIZE
from pybackup.formats.zstd_seekable import INDEX_MAGIC

NOISE = random.Random(21)
DISK = NOISE.randbytes(100 * CLUSTER_SIZE)
CHANGED = NOISE.randbytes(5) + DISK[5:]
OUT = LocalPath("out.vma")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def chain(folder: Path) -> tuple[Night, Night]:
    """base.vma and night.vma, in whose directory no name stands."""
    base = make_night({"disk": DISK}, seed=1, frame_size=1 << 18)
    night = make_night({"disk": CHANGED}, base, seed=2)
    (folder / "base.vma").write_bytes(base.archive)
    (folder / "night.vma").write_bytes(night.archive)
    return base, night


def run(request: MergeRequest) -> MergeJob:
    with merge(request) as made:
        asyncio.run(made.job.run())
    return made.job


def refused(request: MergeRequest, kind: type[PybackupError], sentence: str) -> None:
    before = listing(Path())
    with pytest.raises(kind) as caught:
        run(request)
    assert sentence in str(caught.value)
    assert "--" not in str(caught.value)
    assert listing(Path()) == before


@pytest.mark.usefixtures("chain")
def test_a_chain_becomes_a_full_archive_whose_frames_are_mostly_copied(folder: Path) -> None:
    job = run(MergeRequest(LocalPath("night.vma"), OUT, threads=2))
    archive = (folder / "out.vma").read_bytes()
    assert decode(archive).drives == {"disk": CHANGED}
    assert 0.9 * len(archive) < job.copied < len(archive)
    assert (job.progress.done, job.progress.written) == (len(DISK), len(archive))
    assert sorted(listing(folder)) == ["base.vma", "night.vma", "out.vma"]


def test_a_full_archive_is_packed_anew_where_its_frames_are_too_large(folder: Path) -> None:
    (folder / "full.vma").write_bytes(encode({"disk": DISK}))
    whole = run(MergeRequest(LocalPath("full.vma"), OUT, verify=True))
    anew = run(MergeRequest(LocalPath("full.vma"), LocalPath("anew.vma"), frame_size=1 << 17))
    assert whole.copied > 0.9 * len(DISK) and anew.copied == 0
    for name in ("out.vma", "anew.vma"):
        assert decode((folder / name).read_bytes()).drives == {"disk": DISK}
    reference = identity_of_index(open_index((folder / "full.vma").read_bytes())).reference
    assert reference is not None
    assert identity_of_index(open_index((folder / "anew.vma").read_bytes())).answers(reference)


@pytest.mark.parametrize(
    "style", [foreign_vma.Style(), foreign_vma.Style(whole_clusters=True, backwards=True, entries=7)]
)
@pytest.mark.parametrize("wrapped", ["plain", "gzip"])
def test_an_archive_of_another_program(folder: Path, style: foreign_vma.Style, wrapped: str) -> None:
    disks = {"vmstate": DISK[: 3 * CLUSTER_SIZE], "drive-scsi0": bytes(70 * CLUSTER_SIZE) + DISK[:70_144]}
    archive = foreign_vma.write(disks, {"qemu-server.conf": b"cores: 2\n"}, style)
    (folder / "vzdump.vma").write_bytes(gzip.compress(archive, 1) if wrapped == "gzip" else archive)
    job = run(MergeRequest(LocalPath("vzdump.vma"), OUT))
    read = decode((folder / "out.vma").read_bytes())
    assert read.drives == disks
    assert read.stream.header.configs == (("qemu-server.conf", b"cores: 2\n"),)
    assert read.stream.header.uuid == foreign_vma.UUID
    assert read.stream.has_seek_table and read.stream.protects_data
    counts = identity_of_index(open_index((folder / "out.vma").read_bytes())).about["drives"]
    assert {one["name"]: one["zero_clusters"] for one in counts} == {"vmstate": 0, "drive-scsi0": 70}
    assert bool(job.notes) == (wrapped == "plain")


def test_a_memory_image_that_ends_early_is_filled_up(folder: Path) -> None:
    memory = DISK[: 2 * CLUSTER_SIZE] + bytes(5 * CLUSTER_SIZE)
    archive = foreign_vma.write({"vmstate": memory}, {}, foreign_vma.Style(entries=1))
    (folder / "vzdump.vma").write_bytes(archive[: -4 * 512])
    job = run(MergeRequest(LocalPath("vzdump.vma"), OUT))
    assert decode((folder / "out.vma").read_bytes()).drives == {"vmstate": memory}
    assert any("ends after 196,608 bytes" in note for note in job.notes)


def test_our_plain_archive_gets_an_index(folder: Path) -> None:
    (folder / "plain.vma").write_bytes(encode({"disk": DISK}, level=None))
    job = run(MergeRequest(LocalPath("plain.vma"), OUT))
    assert decode((folder / "out.vma").read_bytes()).drives == {"disk": DISK}
    assert job.notes == []


def test_what_is_there_is_not_replaced(folder: Path, chain: tuple[Night, Night]) -> None:
    night = LocalPath("night.vma")
    (folder / "link.vma").hardlink_to(folder / "base.vma")
    for output in ("base.vma", "night.vma", "link.vma", "./base.vma"):
        sentence = "would be replaced by the archive made of it"
        refused(MergeRequest(night, LocalPath(output)), RequestError, sentence)
        refused(MergeRequest(night, LocalPath(output), replace=True), RequestError, sentence)
    (folder / "out.vma").write_bytes(encode({"other": DISK[:1000]}))
    refused(MergeRequest(night, OUT), TargetError, "out.vma exists already")
    (folder / "letter.txt").write_text("dear")
    refused(MergeRequest(night, LocalPath("letter.txt"), replace=True), TargetError, "letter.txt")
    run(MergeRequest(night, OUT, replace=True))
    assert decode((folder / "out.vma").read_bytes()).drives == {"disk": CHANGED}


def test_a_chain_that_is_not_whole_is_refused_before_anything_is_written(
    folder: Path, chain: tuple[Night, Night]
) -> None:
    night = MergeRequest(LocalPath("night.vma"), OUT)
    base = (folder / "base.vma").read_bytes()
    (folder / "base.vma").unlink()
    refused(night, ArchiveError, str(chain[0].uuid.hex())[:8])
    other = make_night({"disk": DISK[::-1]}, seed=1)
    assert other.uuid == chain[0].uuid
    (folder / "base.vma").write_bytes(other.archive)
    refused(night, ArchiveError, "base.vma has that uuid, but is not the file that it was made from")
    at = base.rindex(INDEX_MAGIC.to_bytes(4, "little")) + 40
    (folder / "base.vma").write_bytes(base[:at] + bytes(4) + base[at + 4 :])
    refused(night, ArchiveError, "night.vma")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "base.vma").write_bytes(base)
    run(MergeRequest(LocalPath("night.vma"), OUT, parents=[LocalPath("elsewhere")]))


def test_damage_leaves_nothing_behind(folder: Path, chain: tuple[Night, Night]) -> None:
    base = bytearray((folder / "base.vma").read_bytes())
    base[len(base) // 2] ^= 1
    (folder / "base.vma").write_bytes(base)
    refused(MergeRequest(LocalPath("night.vma"), OUT), ArchiveError, "base.vma is damaged: ")


@pytest.mark.usefixtures("chain")
def test_a_cancelled_merge_leaves_nothing_behind(folder: Path) -> None:
    before = listing(folder)
    trace = Trace(["archive.extent"], lambda _name, _values: made.job.cancel())
    with merge(MergeRequest(LocalPath("night.vma"), OUT), trace=trace) as made, pytest.raises(CancelledError):
        asyncio.run(made.job.run())
    assert listing(folder) == before


@pytest.mark.usefixtures("chain")
def test_a_command_takes_the_archive(folder: Path) -> None:
    run(MergeRequest(LocalPath("night.vma"), ShellCommand("cat > by-command")))
    assert decode((folder / "by-command").read_bytes()).drives == {"disk": CHANGED}
