"""A name is told apart once: what it names, or why nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybackup.core.errors import RequestError
from pybackup.core.places.kinds import (
    LibvirtDomain,
    LocalPath,
    NbdUri,
    RunningQemu,
    RunningServer,
    ShellCommand,
    StandardInput,
    StandardStream,
    StoreUrl,
)
from pybackup.core.places.parsing import (
    ARCHIVE,
    DISK,
    NEW_ARCHIVE,
    SERVED,
    SOURCE,
    TARGET,
    OtherMachineError,
    Role,
    UnknownPlaceError,
)

ROLES: dict[str, Role[Any]] = {
    "disk": DISK,
    "source": SOURCE,
    "served": SERVED,
    "archive": ARCHIVE,
    "new archive": NEW_ARCHIVE,
    "target": TARGET,
}
READ = ("disk", "source", "served", "archive")
WRITTEN = ("new archive", "target")
KINDS = {
    "disk.img": (LocalPath, ROLES),
    "./rbd:pool": (LocalPath, ROLES),
    "/dev/disk/by-path/pci-0000:00:1f.2": (LocalPath, ROLES),
    "/x://y": (LocalPath, ROLES),
    "a b:c": (LocalPath, ROLES),
    "12:30.vma": (LocalPath, ROLES),
    "vm:new.img": (LocalPath, WRITTEN),
    "serve:/run/c": (RunningServer, ("source",)),
    "qmp:c": (RunningQemu, ("source",)),
    "libvirt:vm 1": (LibvirtDomain, ("source",)),
    "nbd://h/x": (NbdUri, ("disk", "source", "served", "target")),
    "NBD+unix:///x?socket=/s": (NbdUri, ("disk", "source", "served", "target")),
    "s3://b/k": (StoreUrl, ("served", "archive", "new archive")),
    "SFTP://h/x": (StoreUrl, ("served", "archive", "new archive")),
    "https://h/x?y": (StoreUrl, ("served", "archive")),
    "|cat > x": (ShellCommand, WRITTEN),
    "| cat": (ShellCommand, WRITTEN),
}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("text", KINDS)
@pytest.mark.parametrize("role", ROLES)
def test_what_a_name_is(text: str, role: str) -> None:
    kind, roles = KINDS[text]
    if role not in roles:
        if kind is ShellCommand:  # a file may be called so; nothing is run to read
            assert ROLES[role].parse(text) == LocalPath(text)
            return
        with pytest.raises(UnknownPlaceError):
            ROLES[role].parse(text)
        return
    place = ROLES[role].parse(text)
    assert type(place) is kind
    assert place.text == str(place).replace("/x", "/x?y" if "?y" in text else "/x") == text


@pytest.mark.parametrize("role", ROLES)
def test_a_dash_is_a_disk_or_an_archive_or_a_drive(role: str) -> None:
    disk = role in ("disk", "source", "served")
    assert ROLES[role].parse("-") == (StandardInput() if disk else StandardStream())
    assert ROLES[role].parse("./-") == LocalPath("./-")


UNKNOWN = ["foo://x", "rbd://x", "rbd:pool/x", "RBD:pool", "ssh:x", "s3:/b/k", "json:{}", "zfs:vm"]


@pytest.mark.parametrize("text", UNKNOWN)
@pytest.mark.parametrize("role", ROLES)
def test_an_unknown_scheme_is_refused_with_those_that_are_known(role: str, text: str) -> None:
    if role in ("archive", "served") and "//" in text:
        return  # the packages that speak to stores know more than we do
    with pytest.raises(UnknownPlaceError) as refused:
        ROLES[role].parse(text)
    sentence = str(refused.value)
    assert sentence.startswith(f"{text}: ")
    assert refused.value.scheme == text.split(":")[0].lower() and f"{text.split(':')[0]}:" in sentence
    assert ("s3://" if "archive" in role or role == "served" else "nbd://") in sentence
    if "//" not in text:
        assert f"./{text}" in sentence and ROLES[role].parse(f"./{text}") == LocalPath(f"./{text}")


@pytest.mark.parametrize("role", READ)
def test_what_must_be_there_is_no_path_with_any_word(role: str) -> None:
    with pytest.raises(UnknownPlaceError, match=r"\./pool:disk"):
        ROLES[role].parse("pool:disk")


@pytest.mark.parametrize("role", WRITTEN)
def test_what_is_made_is_none_where_there_is_no_such_folder(role: str) -> None:
    for text in ("pool:disk", "pool:{now}/x", "{host}:x/y"):
        if "pool:{" not in text:
            assert ROLES[role].parse(text) == LocalPath(text)
    with pytest.raises(UnknownPlaceError, match=r"\./pool:x/disk"):
        ROLES[role].parse("pool:x/disk")
    Path("pool:x").mkdir()
    assert ROLES[role].parse("pool:x/disk") == LocalPath("pool:x/disk")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", ["vm:old.img", "rbd:x", "me@host:d", "ssh:", "json:{}"])
def test_what_lies_here_is_meant(role: str, name: str) -> None:
    Path(name).symlink_to("nowhere")
    assert ROLES[role].parse(name) == LocalPath(name)


@pytest.mark.parametrize("role", ROLES)
def test_two_slashes_are_never_in_a_path(role: str) -> None:
    Path("foo:").mkdir()
    Path("foo:/x").touch()
    if role in ("archive", "served"):
        assert ROLES[role].parse("foo://x") == StoreUrl("foo://x")
    else:
        with pytest.raises(UnknownPlaceError):
            ROLES[role].parse("foo://x")
    assert ROLES[role].parse("foo:/x") == LocalPath("foo:/x")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "text, host, path",
    [
        ("me@host:/x", "me@host", "/x"),
        ("me@host:x", "me@host", "x"),
        ("host:/x:y", "host", "/x:y"),
        ("host:~/x", "host", "~/x"),
        ("me@[::1]:/x", "me@[::1]", "/x"),
    ],
)
def test_files_of_other_machines(role: str, text: str, host: str, path: str) -> None:
    with pytest.raises(OtherMachineError, match=r"HOST:PATH \(as in scp\)") as refused:
        ROLES[role].parse(text)
    assert (refused.value.host, refused.value.path) == (host, path) and f"./{text}" in str(refused.value)


@pytest.mark.parametrize("text", ["serve:", "qmp:"])
def test_a_socket_needs_a_path(text: str) -> None:
    with pytest.raises(RequestError, match=f"{text} names no socket: write {text}PATH"):
        SOURCE.parse(text)


@pytest.mark.parametrize("text", ["|", "| "])
def test_a_command_is_not_empty(text: str) -> None:
    for role in WRITTEN:
        with pytest.raises(RequestError, match="a command must follow"):
            ROLES[role].parse(text)


@pytest.mark.parametrize("role", ["served", "archive", "new archive"])
def test_a_local_file_has_no_url(role: str) -> None:
    with pytest.raises(RequestError, match="by its path alone"):
        ROLES[role].parse("file:///x")


NAMES = st.builds(
    str.__add__,
    st.sampled_from(["", "-", "|", "serve:", "qmp:", "nbd://", "nbd+unix:///?socket=", "s3://", "a@b:", "x:", "rbd:"]),
    st.text(max_size=20),
)


@settings(deadline=None)
@given(NAMES | st.text(max_size=20), st.sampled_from(sorted(ROLES)))
def test_any_text_is_a_place_that_names_itself_or_refused(text: str, role: str) -> None:
    try:
        place = ROLES[role].parse(text)
    except RequestError as refused:
        assert str(refused)
    else:
        assert place.text == text and ROLES[role].parse(place.text) == place
        assert isinstance(str(place), str)


@pytest.mark.parametrize(
    "url, printed",
    [
        ("s3://bucket/a?b", "s3://bucket/a?b"),
        ("s3://key:secret@bucket/a", "s3://key@bucket/a"),
        ("sftp://user:secret@host:22/a@b:c", "sftp://user@host:22/a@b:c"),
        ("sftp://user@host/a", "sftp://user@host/a"),
        ("sftp://user:se@cret@host/a", "sftp://user@host/a"),
        ("https://host/a?X-Amz-Signature=secret", "https://host/a"),
        ("https://[::1]:80", "https://[::1]:80"),
        ("https://[broken", "https://[broken"),
    ],
)
def test_no_secret_is_shown(url: str, printed: str) -> None:
    place = ARCHIVE.parse(url)
    assert (str(place), place.text) == (printed, url)
    with pytest.raises(UnknownPlaceError) as refused:
        DISK.parse(url)
    assert "secret" not in str(refused.value)
