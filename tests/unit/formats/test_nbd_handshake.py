from __future__ import annotations

import struct

import pytest

from pybackup.formats import nbd_client_wire as client
from pybackup.formats import nbd_wire as wire
from pybackup.formats.errors import FormatError
from pybackup.formats.nbd_handshake import MAX_OPTION, ExportInfo, ServerHandshake, export_flags

FLAGS = export_flags(read_only=False)
ONE = {"disk": ExportInfo(12345, FLAGS, "a disk")}
TWO = {"a": ExportInfo(1, FLAGS), "b": ExportInfo(2, export_flags(read_only=True))}
HELLO = client.encode_client_flags(3)


def begun(exports: dict[str, ExportInfo] = ONE) -> ServerHandshake:
    handshake = ServerHandshake(exports)
    assert client.decode_greeting(handshake.greeting) == 3
    assert handshake.receive(HELLO) == b""
    return handshake


def split(sent: bytes) -> list[tuple[int, int, bytes]]:
    """(option, kind, data) of each reply."""
    replies = []
    while sent:
        header = client.decode_option_reply(sent[: wire.OPTION_REPLY.size])
        end = wire.OPTION_REPLY.size + header.length
        replies.append((header.option, header.kind, sent[wire.OPTION_REPLY.size : end]))
        sent = sent[end:]
    return replies


def kinds(sent: bytes) -> list[int]:
    return [kind for _, kind, _ in split(sent)]


def string(text: str) -> bytes:
    return struct.pack(">I", len(text.encode())) + text.encode()


def test_go_tells_size_flags_and_block_sizes() -> None:
    handshake = begun()
    replies = split(handshake.receive(client.encode_go("disk")))
    assert [kind for _, kind, _ in replies] == [wire.REP_INFO, wire.REP_INFO, wire.REP_ACK]
    assert client.decode_info_export(replies[0][2]) == (12345, FLAGS)
    assert struct.unpack(">HIII", replies[1][2]) == (3, 1, 4096, 32 << 20)
    assert handshake.over
    assert handshake.agreement is not None
    assert (handshake.agreement.export, handshake.agreement.size) == ("disk", 12345)
    assert not handshake.agreement.structured
    assert not handshake.agreement.block_status


def test_info_answers_what_is_asked_and_goes_on() -> None:
    handshake = begun()
    asked = [wire.INFO_NAME, wire.INFO_DESCRIPTION, 77]
    replies = split(handshake.receive(client.encode_go("", asked, wire.OPT_INFO)))
    assert (wire.OPT_INFO, wire.REP_INFO, b"\0\1disk") in replies
    assert (wire.OPT_INFO, wire.REP_INFO, b"\0\2a disk") in replies
    assert not handshake.over
    assert handshake.agreement is None


def test_structured_replies_bring_df() -> None:
    handshake = begun()
    assert kinds(handshake.receive(client.encode_option(wire.OPT_STRUCTURED_REPLY))) == [wire.REP_ACK]
    handshake.receive(client.encode_go("disk"))
    assert handshake.agreement is not None
    assert handshake.agreement.structured
    assert handshake.agreement.flags == FLAGS | wire.FLAG_SEND_DF


@pytest.mark.parametrize(("flags", "zeroes"), [(3, 0), (1, 124), (0, 124)])
def test_export_name_has_its_own_reply(flags: int, zeroes: int) -> None:
    handshake = ServerHandshake(ONE)
    handshake.receive(client.encode_client_flags(flags))
    sent = handshake.receive(client.encode_option(wire.OPT_EXPORT_NAME, b"disk") + b"rest")
    assert sent == struct.pack(">QH", 12345, FLAGS) + bytes(zeroes)
    assert handshake.over
    assert handshake.rest == b"rest"


def test_an_unknown_export_name_has_no_reply() -> None:
    for name in (b"nope", b"\xff", b"x" * 4097):
        with pytest.raises(FormatError):
            begun().receive(client.encode_option(wire.OPT_EXPORT_NAME, name))


def test_list_names_all() -> None:
    replies = split(begun(TWO).receive(client.encode_option(wire.OPT_LIST)))
    assert [data for _, _, data in replies] == [string("a"), string("b"), b""]
    assert split(begun().receive(client.encode_option(wire.OPT_LIST)))[0][2] == string("disk") + b"a disk"


def test_no_name_is_the_only_export_and_else_none() -> None:
    assert kinds(begun(TWO).receive(client.encode_go(""))) == [wire.REP_ERR_UNKNOWN]
    assert kinds(begun(TWO).receive(client.encode_go("b")))[-1] == wire.REP_ACK
    assert kinds(begun(TWO).receive(client.encode_go("c"))) == [wire.REP_ERR_UNKNOWN]
    assert kinds(begun({}).receive(client.encode_go(""))) == [wire.REP_ERR_UNKNOWN]


def test_abort_is_acknowledged_and_the_end() -> None:
    handshake = begun()
    assert kinds(handshake.receive(client.encode_option(wire.OPT_ABORT))) == [wire.REP_ACK]
    assert handshake.over
    assert handshake.agreement is None


@pytest.mark.parametrize(
    ("option", "data", "error"),
    [
        (wire.OPT_STARTTLS, b"", wire.REP_ERR_POLICY),
        (4, b"", wire.REP_ERR_UNSUP),
        (99, b"whatever", wire.REP_ERR_UNSUP),
        (wire.OPT_LIST, b"x", wire.REP_ERR_INVALID),
        (wire.OPT_STRUCTURED_REPLY, b"x", wire.REP_ERR_INVALID),
        (wire.OPT_GO, b"", wire.REP_ERR_INVALID),
        (wire.OPT_GO, string("disk"), wire.REP_ERR_INVALID),
        (wire.OPT_GO, string("disk") + b"\0\2\0\0", wire.REP_ERR_INVALID),
        (wire.OPT_GO, string("disk") + b"\0\0x", wire.REP_ERR_INVALID),
        (wire.OPT_GO, string("x" * 4097) + b"\0\0", wire.REP_ERR_INVALID),
        (wire.OPT_GO, struct.pack(">I", 0xFFFFFFFF), wire.REP_ERR_INVALID),
        (wire.OPT_GO, struct.pack(">I", 1) + b"\xff\0\0", wire.REP_ERR_INVALID),
        (wire.OPT_SET_META_CONTEXT, string("disk") + struct.pack(">I", 0xFFFFFFFF), wire.REP_ERR_INVALID),
        (wire.OPT_SET_META_CONTEXT, string("disk") + struct.pack(">I", 0), wire.REP_ERR_INVALID),
    ],
)
def test_what_cannot_be_done_is_refused_and_the_haggling_goes_on(option: int, data: bytes, error: int) -> None:
    handshake = begun()
    assert kinds(handshake.receive(client.encode_option(option, data))) == [error]
    assert kinds(handshake.receive(client.encode_go("disk")))[-1] == wire.REP_ACK


def test_a_long_option_is_dropped_and_a_longer_one_is_the_end() -> None:
    handshake = begun()
    option = client.encode_option(wire.OPT_GO, bytes(MAX_OPTION + 1))
    assert kinds(handshake.receive(option[:100])) == [wire.REP_ERR_TOO_BIG]
    assert handshake.receive(option[100:-1]) == b""
    assert kinds(handshake.receive(option[-1:] + client.encode_go("disk")))[-1] == wire.REP_ACK
    with pytest.raises(FormatError, match="option of 4294967295 bytes"):
        begun().receive(struct.pack(">QII", wire.OPTION_MAGIC, wire.OPT_GO, 0xFFFFFFFF))


def test_nonsense_is_the_end() -> None:
    with pytest.raises(FormatError, match="unknown handshake flags"):
        ServerHandshake(ONE).receive(b"GET ")
    with pytest.raises(FormatError, match=r"no option \(at byte 4\)"):
        begun().receive(b"x" * 16)


class TestMetaContexts:
    def ask(self, option: int, queries: list[str], export: str = "disk") -> list[tuple[int, bytes]]:
        self.handshake = begun(ONE | {"other": ExportInfo(5, FLAGS)})
        self.handshake.receive(client.encode_option(wire.OPT_STRUCTURED_REPLY))
        sent = self.handshake.receive(client.encode_meta_context(export, queries, option))
        return [(kind, data) for _, kind, data in split(sent)]

    def chosen(self, export: str = "disk") -> bool:
        self.handshake.receive(client.encode_go(export))
        assert self.handshake.agreement is not None
        return self.handshake.agreement.block_status

    def test_set_chooses_it_by_its_name(self) -> None:
        replies = self.ask(wire.OPT_SET_META_CONTEXT, ["qemu:dirty-bitmap:b", "base:allocation"])
        assert [kind for kind, _ in replies] == [wire.REP_META_CONTEXT, wire.REP_ACK]
        assert client.decode_meta_context(replies[0][1]) == (1, "base:allocation")
        assert self.chosen()

    def test_set_of_others_chooses_none(self) -> None:
        for queries in ([], ["base:"], ["base:nonsense"]):
            assert self.ask(wire.OPT_SET_META_CONTEXT, queries) == [(wire.REP_ACK, b"")]
            assert not self.chosen()

    def test_the_last_set_counts(self) -> None:
        self.ask(wire.OPT_SET_META_CONTEXT, ["base:allocation"])
        self.handshake.receive(client.encode_meta_context("disk", []))
        assert not self.chosen()

    def test_set_is_for_one_export(self) -> None:
        self.ask(wire.OPT_SET_META_CONTEXT, ["base:allocation"])
        assert not self.chosen("other")

    def test_list_only_tells(self) -> None:
        for queries in ([], ["base:"], ["base:allocation"]):
            replies = self.ask(wire.OPT_LIST_META_CONTEXT, queries)
            assert [kind for kind, _ in replies] == [wire.REP_META_CONTEXT, wire.REP_ACK]
            assert not self.chosen()

    def test_an_unknown_export_has_none(self) -> None:
        ((kind, message),) = self.ask(wire.OPT_SET_META_CONTEXT, [], "nope")
        assert kind == wire.REP_ERR_UNKNOWN
        assert message == b"there is no export named 'nope'"


def test_flags_say_what_can_be_done() -> None:
    read_only = export_flags(read_only=True)
    assert read_only & wire.FLAG_READ_ONLY
    assert not read_only & (wire.FLAG_SEND_TRIM | wire.FLAG_SEND_WRITE_ZEROES | wire.FLAG_SEND_FAST_ZERO)
    assert not FLAGS & (wire.FLAG_READ_ONLY | wire.FLAG_ROTATIONAL | wire.FLAG_SEND_DF)
    assert FLAGS & wire.FLAG_CAN_MULTI_CONN
