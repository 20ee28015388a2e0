"""Encrypted archives by the real program: made, read by us and by age, refused in a sentence; no secret anywhere."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyrage
import pytest
from command_line import end, listing, pybackup, start, wait_until
from encrypted import IDENTITY, key_file

from pybackup.formats.age_keys import X25519Identity
from pybackup.formats.vma_layout import CLUSTER_SIZE

DISK = random.Random(11).randbytes(20 * CLUSTER_SIZE) + bytes(30 * CLUSTER_SIZE) + b"end"
PASSPHRASE = "correct-horse-battery"
RECIPIENT = str(IDENTITY.recipient())
OTHER = X25519Identity(bytes(range(1, 33)))


class Scene(NamedTuple):
    """A folder with a disk, a key, and an archive that is for it and for another."""

    folder: Path
    key: Path
    archive: Path


@pytest.fixture(name="scene", scope="module")
def _scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    (folder / "d.img").write_bytes(DISK)
    (folder / "recipients").write_text(f"# two\n{RECIPIENT}\n{OTHER.recipient()}\n")
    (folder / "other.txt").write_text(OTHER.secret_text())
    (folder / "wrong.txt").write_text(X25519Identity(bytes(32)).secret_text())
    (folder / "passphrase").write_text(PASSPHRASE + "\n")
    archive = folder / "d.vma.zst.age"
    made = pybackup("run", "--recipients-file", folder / "recipients", "--level", "1", "-v", folder / "d.img", archive)
    assert made.code == 0, made.err
    assert "encrypted" in made.err
    yield Scene(folder, key_file(folder), archive)


def test_age_and_zstd_get_the_data(scene: Scene, need: Callable[..., None]) -> None:
    need("age", "zstd")
    plain = subprocess.run(
        ["age", "-d", "-i", scene.folder / "other.txt", scene.archive], capture_output=True, check=True
    )
    assert plain.stdout == pyrage.decrypt(
        scene.archive.read_bytes(), [pyrage.x25519.Identity.from_str(IDENTITY.secret_text())]
    )
    verified = pybackup("verify", "-", stdin=plain.stdout)
    assert verified.code == 0 and b"sound" in verified.out


def test_every_command_that_reads(scene: Scene, tmp_path: Path) -> None:
    key = ("--identity", str(scene.key))
    restored = pybackup("restore", *key, scene.archive, tmp_path / "back.img")
    assert restored.code == 0, restored.err
    assert (tmp_path / "back.img").read_bytes() == DISK
    for arguments in (
        ("verify", *key, scene.archive),
        ("compare", *key, scene.archive, scene.folder / "d.img"),
        ("config", *key, "--json", scene.archive),
    ):
        assert pybackup(*arguments).code == 0, arguments
    of_environment = pybackup("info", "--json", scene.archive, env={**os.environ, "PYBACKUP_IDENTITY": str(scene.key)})
    assert of_environment.json["drives"][0]["size"] == len(DISK)
    assert of_environment.json["index"] is True
    piped = pybackup("verify", *key, "-", stdin=scene.archive.read_bytes())
    assert piped.code == 0, piped.err


def test_a_server_of_an_encrypted_archive(scene: Scene, tmp_path: Path) -> None:
    server = start(
        "serve", "--identity", scene.key, "--socket", tmp_path / "s", "--control", tmp_path / "c", scene.archive
    )
    try:
        wait_until((tmp_path / "c").exists, "the server", [server])
        back = pybackup("run", f"d=nbd+unix:///d?socket={tmp_path / 's'}", tmp_path / "again.vma.zst")
        assert back.code == 0, back.err
    finally:
        pybackup("ctl", tmp_path / "c", "quit")
        end(server)
    assert pybackup("compare", tmp_path / "again.vma.zst", scene.folder / "d.img").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ((), 7, "is encrypted, and no identity was given to open it; --identity FILE"),
        (("--identity", "wrong.txt"), 7, "is encrypted for others: no identity that was given opens it"),
        (("--identity", "gone.txt"), 7, "cannot read the identity file gone.txt: No such file"),
        (
            ("--identity", "recipients"),
            7,
            "line 2 of the identity file recipients is no key of ours: it is a recipient",
        ),
        (("--passphrase-file", "passphrase"), 7, "is encrypted for others"),
    ],
)
def test_without_the_key(arguments: tuple[str, ...], code: int, told: str, scene: Scene) -> None:
    before = listing(scene.folder)
    for command in (("verify",), ("restore", "--force")):
        target = ("new.img",) if command[0] == "restore" else ()
        outcome = pybackup(*command, *arguments, scene.archive, *target, cwd=scene.folder)
        assert (outcome.code, outcome.err.count("\n")) == (code, 1)
        assert told in outcome.err
    assert listing(scene.folder) == before


def test_verify_of_several_goes_on_and_is_no_success(scene: Scene, tmp_path: Path) -> None:
    plain = tmp_path / "p.vma.zst"
    assert pybackup("run", scene.folder / "d.img", plain).code == 0
    outcome = pybackup("verify", "--json", scene.archive, plain)
    first, second = map(json.loads, outcome.out.splitlines())
    assert outcome.code == 7
    assert first["sound"] is None and "no identity" in first["not_proved"]
    assert second["sound"] is True
    plain.write_bytes(plain.read_bytes()[:-100])
    assert pybackup("verify", plain, scene.archive).code == 4


def test_armor_is_told_as_that(scene: Scene, tmp_path: Path) -> None:
    armored = pyrage.encrypt(b"x", [pyrage.x25519.Recipient.from_str(RECIPIENT)], armored=True)
    (tmp_path / "a.age").write_bytes(armored)
    outcome = pybackup("info", "--identity", scene.key, tmp_path / "a.age")
    assert outcome.code == 4
    assert "it is armored" in outcome.err and "age -d" in outcome.err and "damaged" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--recipient", "age1nobody"), "is no recipient"),
        (("--recipient", IDENTITY.secret_text()), "it is an identity, which is secret"),
        (("--recipients-file", "gone"), "cannot read the recipients file"),
        (("--recipients-file", "d.img"), "recipients file"),
        (("--recipient", RECIPIENT, "--passphrase-file", "passphrase"), "--passphrase-file goes alone"),
        (("--no-public-facts",), "--no-public-facts is for archives that are encrypted"),
        (("--recipient", RECIPIENT, "--verify"), "--identity of a recipient"),
        (("--recipient", RECIPIENT, "--verify", "--identity", "wrong.txt"), "no --identity is that of a recipient"),
    ],
)
def test_requests_that_make_no_sense(arguments: tuple[str, ...], told: str, scene: Scene) -> None:
    before = listing(scene.folder)
    outcome = pybackup("run", *arguments, "d.img", "new.vma.zst.age", cwd=scene.folder)
    assert outcome.code == 2
    assert told in outcome.err
    assert IDENTITY.secret_text() not in outcome.err
    assert listing(scene.folder) == before


def test_a_job_file_names_recipients(scene: Scene, tmp_path: Path) -> None:
    job = tmp_path / "night.toml"
    job.write_text(
        f'sources = "{scene.folder / "d.img"}"\narchive = "{tmp_path}/{{job}}.vma.zst.age"\n'
        f'recipient = ["{RECIPIENT}"]\n'
        f'identity = "{scene.key}"\nverify = true\nno-public-facts = true\n'
    )
    outcome = pybackup("run", "--job", job, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["encrypted"] is outcome.json["verified"] is True
    header = (tmp_path / "night.vma.zst.age").read_bytes().partition(b"\n---")[0]
    assert header.count(b"-> ") == 1


def test_a_passphrase(scene: Scene, tmp_path: Path) -> None:
    word = ("--passphrase-file", str(scene.folder / "passphrase"))
    archive = tmp_path / "d.vma.age"
    made = pybackup("run", *word, "--compress", "none", scene.folder / "d.img", archive)
    assert made.code == 0, made.err
    assert pybackup("verify", *word, archive).code == 0
    outcome = pybackup("verify", archive)
    assert outcome.code == 7 and "--passphrase-file FILE" in outcome.err
    # What may be there as an archive, though nobody can look, is replaced only when that is asked for.
    assert pybackup("run", scene.folder / "d.img", archive).code == 5
    assert pybackup("run", "--force", scene.folder / "d.img", archive).code == 0


def test_to_the_standard_output_and_through_a_command(scene: Scene, tmp_path: Path) -> None:
    to = ("--recipient", RECIPIENT)
    out = pybackup("run", *to, scene.folder / "d.img", "-")
    assert out.code == 0, out.err
    assert pybackup("verify", "--identity", scene.key, "-", stdin=out.out).code == 0
    piped = pybackup("run", *to, scene.folder / "d.img", f"|cat > {tmp_path / 'x'}")
    assert piped.code == 0, piped.err
    assert pybackup("verify", "--identity", scene.key, tmp_path / "x").code == 0


def test_keygen(tmp_path: Path, need: Callable[..., None]) -> None:
    need("age-keygen")
    made = pybackup("keygen", "-o", tmp_path / "k")
    assert made.code == 0 and made.out == b""
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600
    told = subprocess.run(["age-keygen", "-y", tmp_path / "k"], capture_output=True, text=True, check=True)
    assert made.err == f"Public key: {told.stdout}"
    content = (tmp_path / "k").read_bytes()
    again = pybackup("keygen", "-o", tmp_path / "k")
    assert again.code == 5 and "exists already" in again.err
    assert (tmp_path / "k").read_bytes() == content
    shown = pybackup("keygen")
    assert shown.out.splitlines()[1] == f"# public key: {shown.err.split()[-1]}".encode()


def test_no_secret_is_told(scene: Scene, tmp_path: Path) -> None:
    """Traced, talkative, with tracebacks, damaged: neither keys nor passphrases."""
    broken = tmp_path / "b.age"
    content = bytearray(scene.archive.read_bytes())
    content[len(content) // 2] ^= 1
    broken.write_bytes(content)
    loud = ("--trace", "*", "-v")
    debug = {**os.environ, "PYBACKUP_DEBUG": "1"}
    keys = ("--identity", str(scene.key))
    told = [
        pybackup(
            "run", *loud, *keys, "--verify", "--recipient", RECIPIENT, scene.folder / "d.img", tmp_path / "1", env=debug
        ),
        pybackup(
            "run",
            *loud,
            "--passphrase-file",
            scene.folder / "passphrase",
            scene.folder / "d.img",
            tmp_path / "2",
            env=debug,
        ),
        pybackup("restore", *loud, *keys, broken, tmp_path / "3", env=debug),
        pybackup("verify", *loud, *keys, broken, env=debug),
        pybackup("verify", *loud, "--passphrase-file", scene.folder / "passphrase", broken, env=debug),
    ]
    assert [one.code for one in told] == [0, 0, 4, 4, 7]
    secret = IDENTITY.secret_text()
    for one in told:
        text = one.out.decode() + one.err
        for part in (secret[16:40], secret[-20:], PASSPHRASE, bytes(range(32)).hex()[:24]):
            assert part.lower() not in text.lower()


def test_no_secret_is_in_the_list_of_processes(scene: Scene, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    process = start("run", "--identity", scene.key, "--recipient", RECIPIENT, scene.folder / "d.img", tmp_path / "pipe")
    try:
        shown = Path(f"/proc/{process.pid}/cmdline")
        wait_until(lambda: RECIPIENT.encode() in shown.read_bytes(), "the command line", [process])
        assert b"SECRET" not in shown.read_bytes()
        with open(tmp_path / "pipe", "rb") as file:
            assert len(file.read()) > 20 * CLUSTER_SIZE
    except BaseException:
        process.kill()
        raise
    finally:
        outcome = end(process)
    assert outcome.code == 0, outcome.err


@pytest.fixture(name="nights")
def _nights(scene: Scene, tmp_path: Path) -> Path:
    """A folder with a full archive and two deltas, encrypted."""
    folder = tmp_path / "nights"
    folder.mkdir()
    disk = tmp_path / "vm.img"
    for night in (1, 2, 3):
        content = bytearray(DISK)
        content[night * CLUSTER_SIZE] ^= 0xFF
        disk.write_bytes(content)
        made = pybackup(
            *("run", "--recipient", RECIPIENT, "--identity", scene.key, "--incremental"),
            *("--time", str(1767182400 + night * 86400)),
            *(disk, folder / f"vm-2026010{night}.vma.zst.age"),
        )
        assert made.code == 0, made.err
    return folder


def test_list_and_prune_without_a_key(nights: Path, scene: Scene) -> None:
    told = pybackup("list", "--json", nights)
    assert told.code == 0, told.err
    rows = {one["name"]: one for one in told.json["archives"]}
    assert [rows[f"vm-2026010{night}.vma.zst.age"]["chain"] for night in (1, 2, 3)] == [0, 1, 2]
    assert all(one["public_facts_only"] and one["drives"][0]["size"] == len(DISK) for one in rows.values())
    with_key = pybackup("list", "--json", "--identity", scene.key, nights)
    assert with_key.code == 0, with_key.err
    for one in with_key.json["archives"]:
        known = rows[one["name"]]
        for key in ("uuid", "created", "delta", "parent", "chain", "needed_by", "size", "series", "broken"):
            assert one[key] == known[key]
    pruned = pybackup("prune", nights, "--keep-last", "1")
    assert pruned.code == 0, pruned.err
    assert len(list(nights.iterdir())) == 3, "the newest needs both others"


def test_prune_with_a_key_does_not_believe_what_nobody_proves(nights: Path, scene: Scene) -> None:
    """Who can write to the place makes newer ones, for a key of his own: the true ones stay."""
    false = nights / "vm-20260104.vma.zst.age"
    other = ("--recipient", str(OTHER.recipient()), "--time", str(4 * 86400))
    assert pybackup("run", *other, scene.folder / "d.img", false).code == 0
    before = listing(nights)
    prune = ("prune", nights, "--keep-last", "1")
    told = pybackup(*prune, "--identity", scene.key)
    assert told.code == 7 and f"no key that was given opens {false}" in told.err
    for command in (prune, ("list", nights)):
        told = pybackup(*command, "--identity", "gone.txt")
        assert told.code == 7 and "cannot read the identity file gone.txt" in told.out.decode() + told.err
    assert pybackup(*prune, "--identity", scene.key, "--ignore", false.name).code == 0
    assert listing(nights) == before
    assert pybackup(*prune, "--identity", scene.key, "--identity", scene.folder / "other.txt").code == 0


def test_prune_removes_nothing_where_an_archive_tells_nothing(nights: Path, scene: Scene) -> None:
    secret = nights / "vm-20260104.vma.zst.age"
    made = pybackup("run", "--no-public-facts", "--recipient", RECIPIENT, scene.folder / "d.img", secret)
    assert made.code == 0
    before = listing(nights)
    outcome = pybackup("prune", nights, "--keep-last", "1")
    assert outcome.code != 0 and secret.name in outcome.err
    assert listing(nights) == before
    assert pybackup("list", nights).code == 7


def test_a_chain_is_merged_for_recipients_only(nights: Path, scene: Scene, tmp_path: Path) -> None:
    newest, out = nights / "vm-20260103.vma.zst.age", tmp_path / "m.vma.zst.age"
    refused = pybackup("merge", "--identity", scene.key, newest, out)
    assert refused.code == 2 and "would not be: --recipient" in refused.err
    assert not out.exists()
    merged = pybackup("merge", "--identity", scene.key, "--recipient", RECIPIENT, "--verify", newest, out)
    assert merged.code == 0, merged.err
    assert pybackup("compare", "--identity", scene.key, out, tmp_path / "vm.img").code == 0
    assert pybackup("verify", out).code == 7


def test_deltas_by_what_the_machine_remembers(scene: Scene, tmp_path: Path) -> None:
    """No identity is here while they are made; where the memory is lost, the next one is full, and says so."""
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    folder, disk = tmp_path / "nights", tmp_path / "vm.img"
    folder.mkdir()

    def night(number: int) -> str:
        content = bytearray(DISK)
        content[number * CLUSTER_SIZE] ^= 0xFF
        disk.write_bytes(content)
        made = pybackup(
            *(
                "run",
                "-v",
                "--recipient",
                RECIPIENT,
                "--no-public-facts",
                "--incremental",
                "--force",
                "--time",
                str(1767182400 + number * 86400),
            ),
            *(disk, folder / f"vm-2026010{number}.vma.zst.age"),
            env=env,
        )
        assert made.code == 0, made.err
        return made.err

    assert "stored whole" in night(1)
    assert "compared with the parent's digests" in night(2)
    assert "compared with the parent's digests" in night(3)
    third = folder / "vm-20260103.vma.zst.age"
    assert third.stat().st_size < len(DISK) // 5
    assert pybackup("compare", "--identity", scene.key, third, disk).code == 0
    # What is remembered opens nothing.
    assert pybackup("info", third, env=env).code == 7
    for path in (tmp_path / "state" / "pybackup" / "indexes").iterdir():
        path.unlink()
    assert "this machine has neither a key nor remembers it" in night(4)
    (kept,) = (tmp_path / "state" / "pybackup" / "indexes").iterdir()
    damaged = bytearray(kept.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    kept.write_bytes(damaged)
    assert "this machine has neither a key nor remembers it" in night(4)
    assert pybackup("compare", "--identity", scene.key, folder / "vm-20260104.vma.zst.age", disk).code == 0
    assert "compared with the parent's digests" in night(5)


def test_a_delta_in_the_clear_of_what_was_encrypted_is_told(scene: Scene, tmp_path: Path) -> None:
    disk = tmp_path / "vm.img"
    disk.write_bytes(DISK)
    made = pybackup("run", "--recipient", RECIPIENT, disk, tmp_path / "first.vma.zst.age")
    assert made.code == 0, made.err
    options = ["--base", tmp_path / "first.vma.zst.age", "--identity", scene.key]
    clear = pybackup("run", *options, disk, tmp_path / "second.vma.zst")
    assert clear.code == 0
    assert "first.vma.zst.age is encrypted, and what is stored of it now is not" in clear.err
    sealed = pybackup("run", *options, "--recipient", RECIPIENT, disk, tmp_path / "third.vma.zst.age")
    assert (sealed.code, sealed.err) == (0, "")
