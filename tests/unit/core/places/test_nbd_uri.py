"""NBD URIs, after doc/uri.md of the NBD project."""

from __future__ import annotations

import pytest

from pybackup.core.endpoints.drive_names import drive_name, source_label
from pybackup.core.errors import RequestError
from pybackup.core.places.kinds import NbdUri
from pybackup.core.places.nbd_uri import NbdAddress, is_nbd_uri, parse_nbd_uri

GOOD = {
    "nbd://example.com": NbdAddress("", host="example.com"),
    "nbd://example.com/": NbdAddress("", host="example.com"),
    "nbd://example.com/disk": NbdAddress("disk", host="example.com"),
    "nbd://example.com//disk": NbdAddress("/disk", host="example.com"),
    "nbd://example.com//": NbdAddress("/", host="example.com"),
    "nbd://example.com/a/b": NbdAddress("a/b", host="example.com"),
    "nbd://example.com/a%2Fb%3f": NbdAddress("a/b?", host="example.com"),
    "nbd://example.com/hello%20world": NbdAddress("hello world", host="example.com"),
    "nbd://example.com/a+b": NbdAddress("a+b", host="example.com"),
    "nbd://example.com/gr%C3%BCn": NbdAddress("grün", host="example.com"),
    "nbd://example.com/grün": NbdAddress("grün", host="example.com"),
    "nbd://example.com/%2541": NbdAddress("%41", host="example.com"),
    "nbd://example.com/100%": NbdAddress("100%", host="example.com"),
    "nbd://EXAMPLE.com:/Disk": NbdAddress("Disk", host="example.com"),
    "NBD://example.com/Disk": NbdAddress("Disk", host="example.com"),
    "nbd://127.0.0.1:10810/x": NbdAddress("x", host="127.0.0.1", port=10810),
    "nbd://[::1]/x": NbdAddress("x", host="::1"),
    "nbd://[::1]:1/x": NbdAddress("x", host="::1", port=1),
    "nbd://[fe80::1%25eth0]:1/x": NbdAddress("x", host="fe80::1%eth0", port=1),
    "nbd:///x": NbdAddress("x"),
    "nbd://:11/x": NbdAddress("x", port=11),
    "nbd+unix:///?socket=nbd.sock": NbdAddress("", socket="nbd.sock"),
    "nbd+unix://?socket=nbd.sock": NbdAddress("", socket="nbd.sock"),
    "Nbd+Unix:///x?socket=/run/nbd.sock": NbdAddress("x", socket="/run/nbd.sock"),
    "nbd+unix:////x?socket=/run/nbd.sock": NbdAddress("/x", socket="/run/nbd.sock"),
    "nbd+unix:///x?socket=/run/a+b%20%26c=d%23": NbdAddress("x", socket="/run/a+b &c=d#"),
    "nbd+unix:///x?socket=%00abstract": NbdAddress("x", socket="\0abstract"),
    "nbd+unix:///x?socket=/run/%ff": NbdAddress("x", socket="/run/\udcff"),
}
BAD = {
    "nbds://example.com/x": "TLS is not supported",
    "NBDS://example.com/x": "TLS is not supported",
    "nbds+unix:///x?socket=s": "TLS is not supported",
    "nbd+vsock://2/x": "vsock is not supported",
    "nbd://alice@example.com/x": "a user name goes with TLS only",
    "nbd://example.com:70000/x": "Port out of range",
    "nbd://example.com:0/x": "0 is no port",
    "nbd://example.com:ten/x": "Port could not be cast",
    "nbd://[::1/x": "Invalid IPv6 URL",
    "nbd://example.com/x#y": "write # as %23",
    "nbd://example.com/x#": "write # as %23",
    "nbd://example.com/x?socket=s": "no parameter 'socket'",
    "nbd://example.com/x?tls-type=x509": "no parameter 'tls-type'",
    "nbd+unix:///x?socket=s&tls-type=x509": "no parameter 'tls-type'",
    "nbd+unix:///x": "write nbd\\+unix:///EXPORT\\?socket=PATH",
    "nbd+unix:///x?socket=": "write nbd\\+unix:///EXPORT\\?socket=PATH",
    "nbd+unix:///x?socket": "write nbd\\+unix:///EXPORT\\?socket=PATH",
    "nbd+unix:///x?socket=a&socket=b": "write nbd\\+unix:///EXPORT\\?socket=PATH",
    "nbd+unix://x?socket=a": "write nbd\\+unix:///EXPORT\\?socket=PATH",
    "nbd+unix:///x?socket=/run/%00": "a path has no NUL",
    "nbd://example.com/%00": "has no NUL",
    "nbd://example.com/%ff": "it is not UTF-8",
    "nbd://example.com/\udcff": "cannot be printed",
    "nbd://example.com/a\tb": "cannot be printed",
    " nbd://example.com/a": "blanks",
    "nbd://example.com/" + "x" * 4097: "at most 4096 bytes",
}


@pytest.mark.parametrize("uri", GOOD)
def test_an_address(uri: str) -> None:
    assert is_nbd_uri(uri)
    assert parse_nbd_uri(uri) == GOOD[uri]


@pytest.mark.parametrize("uri", BAD)
def test_what_is_refused(uri: str) -> None:
    with pytest.raises(RequestError, match=BAD[uri]) as caught:
        parse_nbd_uri(uri)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("what", ["/dev/sda", "nbd", "nbd:", "nbd/disk.raw", "file:///nbd", "serve:/x", "-", ""])
def test_what_is_no_uri(what: str) -> None:
    assert not is_nbd_uri(what)


def test_how_an_address_is_called() -> None:
    assert str(NbdAddress("x", host="::1", port=1)) == "export 'x' of the NBD server at [::1]:1"
    assert str(NbdAddress("", host="h")) == "the NBD server at h:10809"
    assert str(NbdAddress("", socket="\0x")) == "the NBD server at '\\x00x'"


class Source:
    """As the command line gives it."""

    name = None

    def __init__(self, uri: str) -> None:
        self.what = NbdUri(uri, parse_nbd_uri(uri))


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("nbd://h/disk", "disk"),
        ("nbd://h", "nbd"),
        ("nbd://h/a/b%20c", "b-c"),
        ("nbd://h/a/", "nbd"),
        ("nbd://h/%2e%2e", "nbd"),
        ("nbd://h/.hidden", "hidden"),
        ("nbd://h/%1b[31m", "31m"),
        ("nbd://h/" + "x" * 4096, "x" * 100),
        ("nbd://h/%C3%BC", "nbd"),
        ("nbd+unix:///disk.qcow2?socket=/secret/s", "disk.qcow2"),
    ],
)
def test_a_drives_name_is_that_of_its_export(uri: str, name: str) -> None:
    assert drive_name(Source(uri)) == name


def test_an_archive_does_not_tell_where_its_source_lies() -> None:
    assert source_label(Source("nbd+unix:///vm/disk?socket=/secret/s").what) == "disk"
    assert source_label(Source("nbd://secret").what) == ""
