"""`verify` of a folder: all of it, a share of it, and what it is time for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Outcome, pybackup
from faulty_proxy import FaultyProxy
from nightly_archives import archive_bytes, nights
from object_store import Store, moto_server

from pybackup.core.history.verified import RECORD


def verify(*arguments: str | Path, code: int = 0) -> Outcome:
    done = pybackup("verify", *arguments)
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    return done


def verified(*arguments: str | Path, code: int = 0) -> list[str]:
    """The names of those that were read, in their order."""
    lines = verify("--json", *arguments, code=code).out.splitlines()
    return [Path(json.loads(line)["archive"]).name for line in lines]


def test_a_folder_is_scrubbed_round_and_round(tmp_path: Path) -> None:
    made = [Path(one.name).name for one in nights(tmp_path, 3, full_every=3)]
    assert sorted(verified(tmp_path)) == made
    assert verified("--older-than", "1d", tmp_path) == []
    told = verify("--older-than", "1d", tmp_path).out.decode()
    assert told == f"{tmp_path}: all was read, and found sound, as lately as was asked\n"
    assert sorted(verified("--older-than", "0", tmp_path)) == made
    # What is new, or of which only a part was read, it is time for.
    new = Path(nights(tmp_path, 1, full_every=1, name="new")[0].name).name
    verify("--sample", "50%", tmp_path)
    assert verified("--older-than", "1d", tmp_path) == [new]
    # Whose record is lost, is new.
    (tmp_path / RECORD).write_bytes(os.urandom(5000))
    assert sorted(verified("--older-than", "1d", tmp_path)) == [new, *made]
    assert verified("--older-than", "1d", tmp_path) == []


def test_damage_is_found_and_looked_at_again(tmp_path: Path) -> None:
    made = nights(tmp_path, 2, full_every=1)
    path = Path(made[1].name)
    content = bytearray(path.read_bytes())
    content[250] ^= 1
    path.write_bytes(content)
    (tmp_path / "bad.vma.zst").write_bytes(b"no archive")
    done = verify(tmp_path, code=4)
    assert f"{path}:" in done.err and "bad.vma.zst: it is not an archive" in done.err
    assert verified("--older-than", "1d", tmp_path, code=4) == ["bad.vma.zst", path.name]
    done = verify("--sample", "100%", tmp_path, code=4)
    assert f"{path} is damaged" in done.err


def test_a_sample_says_what_it_proves(tmp_path: Path) -> None:
    (one,) = nights(tmp_path, 1, full_every=1)
    plain = tmp_path / "a.vma"
    (tmp_path / "d.img").write_bytes(b"x" * 70000)
    assert pybackup("run", "--compress", "none", tmp_path / "d.img", plain).code == 0
    done = verify("--sample", "5%", one.name, plain)
    assert done.out.decode().startswith(f"{one.name}: of 1 stored cluster 1 (100.0 %) were read at random")
    assert done.out.decode().endswith("nothing is known of the rest\n")
    assert done.err == f"pybackup: {plain}: nothing is proved: it has no index, by which a part could be read\n"
    found = verify("--sample", "5%", "--json", one.name).json
    assert found == {
        "archive": one.name,
        "sound": None,
        "sampled_clusters": 1,
        "stored_clusters": 1,
        "damage": [],
    }


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--sample", "0%"), "is not a share"),
        (("--sample", "101%"), "is not a share"),
        (("--sample", "5"), "is not a share; write for example 5%"),
        (("--sample", "-5%"), "is not a share"),
        (("--older-than", "x"), "is not a duration"),
        (("--chain",), "--chain goes with archives"),
    ],
)
def test_what_makes_no_sense(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    done = verify(*arguments, tmp_path, code=2)
    assert told in done.err


def test_options_that_need_a_folder_or_a_file(tmp_path: Path) -> None:
    (one,) = nights(tmp_path, 1, full_every=1)
    assert "--older-than goes with a folder" in verify("--older-than", "1d", one.name, code=2).err
    assert "can only be read to its end" in verify("--sample", "5%", "-", code=2).err
    (tmp_path / "empty").mkdir()
    # It may be what a disk should be mounted on.
    assert f"there is no archive in {tmp_path / 'empty'}" in verify("-q", tmp_path / "empty", code=4).err


def test_a_folder_that_nothing_can_be_written_to(tmp_path: Path) -> None:
    nights(tmp_path, 1, full_every=1)
    (tmp_path / RECORD).mkdir()
    done = verify(tmp_path)
    assert "could not be written down beside it" in done.err and ": sound:" in done.out.decode()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with moto_server() as port, FaultyProxy(port).running() as proxy:
        yield Store(port, proxy, tmp_path_factory.mktemp("store"), "bucket")


def test_a_prefix_of_a_bucket(store: Store) -> None:
    store.put("shelf/a.vma.zst", archive_bytes(1_700_000_000))
    done = store.run("verify", "s3://bucket/shelf/")
    assert "a.vma.zst: sound" in done.out.decode()
    assert store.keys() == ["shelf/.pybackup-verified", "shelf/a.vma.zst"]
    store.put("shelf/.pybackup-verified", store.content("shelf/.pybackup-verified") + b"garbage")
    assert store.run("verify", "--older-than", "1d", "--json", "s3://bucket/shelf/").out == b""
