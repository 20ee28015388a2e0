"""The words of `pybackup merge`: pipes, reports, exit codes, and what is left of one that was interrupted."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from archives import decode, encode
from chains import make_night
from command_line import end, listing, pybackup, start, wait_until

DISK = random.Random(4).randbytes(3 << 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = make_night({"disk": DISK}, seed=1)
    night = make_night({"disk": DISK[::-1]}, base, seed=2)
    (tmp_path / "base.vma").write_bytes(base.archive)
    (tmp_path / "night.vma").write_bytes(night.archive)
    return tmp_path


def test_through_pipes(folder: Path) -> None:
    plain = encode({"disk": DISK}, level=None)
    outcome = pybackup("merge", "-", "-", stdin=plain, cwd=folder)
    assert outcome.code == 0, outcome.err
    assert decode(outcome.out).drives == {"disk": DISK}
    cut = pybackup("merge", "-", "out.vma", stdin=plain[:-1000], cwd=folder)
    assert cut.code == 4 and "the standard input is damaged" in cut.err
    delta = pybackup("merge", "-", "out.vma", stdin=(folder / "night.vma").read_bytes(), cwd=folder)
    assert delta.code == 4 and "holds only what changed since its parent" in delta.err
    assert sorted(listing(folder)) == ["base.vma", "night.vma"]


def test_a_summary_and_exit_codes(folder: Path) -> None:
    outcome = pybackup("merge", "night.vma", "out.vma", "-v", cwd=folder)
    assert outcome.code == 0
    assert "out.vma: 3.00 MiB of 2 archives in " in outcome.err and outcome.out == b""
    again = pybackup("merge", "night.vma", "out.vma", cwd=folder)
    assert again.code == 5 and again.err == "pybackup: out.vma exists already; --force replaces it\n"
    own = pybackup("merge", "night.vma", "base.vma", "--force", cwd=folder)
    assert own.code == 2 and "base.vma would be replaced by the archive made of it" in own.err
    both = pybackup("merge", "--json", "night.vma", "-", cwd=folder)
    assert both.code == 2 and both.out == b""
    assert pybackup("merge", "--verify", "night.vma", "-", cwd=folder).code == 2
    assert pybackup("merge", "nowhere.vma", "new.vma", cwd=folder).code == 4
    (folder / "base.vma").unlink()
    orphan = pybackup("merge", "night.vma", "new.vma", cwd=folder)
    assert orphan.code == 4 and "--parents" in orphan.err
    assert sorted(listing(folder)) == ["night.vma", "out.vma"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_merge_leaves_nothing(folder: Path, number: signal.Signals, code: int) -> None:
    before = listing(folder)
    process = start("merge", "night.vma", "out.vma", "--speed", "1", cwd=folder)
    wait_until(lambda: len(listing(folder)) > len(before), "the temporary file", [process])
    assert end(process, number).code == code
    assert listing(folder) == before


def test_what_is_encrypted_is_encrypted_again(folder: Path) -> None:
    assert pybackup("keygen", "-o", "key", cwd=folder).code == 0
    recipient = (folder / "key").read_text().split("public key: ")[1].split()[0]
    (folder / "disk.img").write_bytes(DISK)
    assert pybackup("run", "--recipient", recipient, "disk.img", "0.vma", cwd=folder).code == 0
    (folder / "disk.img").write_bytes(DISK[::-1])
    keys = ["--identity", "key", "--recipient", recipient]
    assert pybackup("run", *keys, "--base", "0.vma", "disk.img", "1.vma", cwd=folder).code == 0
    before = listing(folder)
    closed = pybackup("merge", "1.vma", "out.vma", cwd=folder)
    assert closed.code == 7 and "--identity" in closed.err
    bare = pybackup("merge", "1.vma", "out.vma", "--identity", "key", cwd=folder)
    assert (
        bare.code == 2
        and "1.vma is encrypted, and what it is merged into would not be" in bare.err
        and "--decrypt" in bare.err
    )
    stream = pybackup("merge", "-", "out.vma", "--identity", "key", stdin=before["0.vma"], cwd=folder)
    assert stream.code == 2 and "the standard input is encrypted" in stream.err
    assert pybackup("merge", "1.vma", "out.vma", "--decrypt", *keys, cwd=folder).code == 2
    assert listing(folder) == before
    merged = pybackup("merge", "1.vma", "out.vma", "--verify", *keys, cwd=folder)
    assert merged.code == 0, merged.err
    assert (folder / "out.vma").read_bytes().startswith(b"age-encryption.org/v1\n")
    assert pybackup("compare", "out.vma", "disk.img", "--identity", "key", cwd=folder).code == 0
    assert pybackup("merge", "out.vma", "clear.vma", "--decrypt", "--identity", "key", cwd=folder).code == 0
    assert decode((folder / "clear.vma").read_bytes()).drives == {"disk": DISK[::-1]}
