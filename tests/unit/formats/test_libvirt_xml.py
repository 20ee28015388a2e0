"""The XML of libvirt, and XML that is none of libvirt's."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybackup.formats.errors import FormatError
from pybackup.formats.libvirt_xml import (
    MOST_BYTES,
    MOST_DEPTH,
    DomainDisk,
    PulledDisk,
    checkpoint,
    parse,
    parse_backup_job,
    parse_checkpoint,
    parse_domain,
    pull_backup,
    with_description,
)

DOMAIN = """
<domain type='kvm' id='1'><name>a &amp; b</name><uuid>26fbb73a-f056-4061-b867-42fa25c1680c</uuid>
<os><nvram template='/t'>/nvram/web.fd</nvram></os>
<devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a b.qcow2' index='2'/>
  <target dev='vda' bus='virtio'/></disk>
<disk type='block' device='lun'><source dev='/dev/vg0/x'/><target dev='sda'/></disk>
<disk type='volume' device='disk'><source pool='p' volume='v'/><target dev='sdb'/><encryption format='luks'/></disk>
<disk type='network' device='disk'><driver type='raw'/><source protocol='rbd' name='pool/x'/><target dev='sdc'/></disk>
<disk type='file' device='cdrom'><source file='/cd.iso'/><target dev='sdd'/></disk>
<disk type='file' device='disk'><source file='/ro'/><target dev='sde'/><readonly/></disk>
<disk type='file' device='disk'><source file='/t'/><target dev='sdf'/><transient/></disk>
<disk type='file' device='floppy'><target dev='fda'/></disk>
<disk type='vhostuser' device='disk'><source type='unix' path='/s'/><target dev='vdz'/></disk>
<hostdev mode='subsystem' type='pci'/>
<filesystem type='mount'><source dir='/srv'/><target dir='share'/></filesystem>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
</devices>
<seclabel type='dynamic' model='apparmor'><label>x</label></seclabel>
<seclabel type='dynamic' model='dac'><label>+64055:+108</label></seclabel></domain>
"""


def test_what_a_domain_has() -> None:
    found = parse_domain(DOMAIN)
    assert found.name == "a & b" and found.uuid == "26fbb73a-f056-4061-b867-42fa25c1680c"
    assert found.disks == [
        DomainDisk("vda", "file", "/a b.qcow2", "qcow2"),
        DomainDisk("sda", "block", "/dev/vg0/x"),
        DomainDisk("sdb", "volume", "v", "raw", "p", "v", is_encrypted=True),
        DomainDisk("sdc", "network", "pool/x"),
    ]
    names = [one.name for one in found.left_out]
    assert names == ["sdd", "sde", "sdf", "fda", "vdz", "pci device 1", "folder share"]
    assert found.nvram == "/nvram/web.fd" and found.has_tpm and found.has_agent and found.is_agent_connected
    assert found.owner == (64055, 108)


def test_a_domain_with_nothing() -> None:
    found = parse_domain("<domain><devices/></domain>")
    assert (found.name, found.disks, found.nvram, found.owner, found.has_agent) == ("", [], None, None, False)
    assert parse_domain("<domain><os><nvram><source file='/v'/></nvram></os></domain>").nvram == "/v"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<!DOCTYPE x [<!ENTITY a 'aaaa'>]><domain>&a;</domain>", "declares a document type"),
        ("<!DOCTYPE domain SYSTEM 'file:///etc/passwd'><domain/>", "declares a document type"),
        ("<domain>" + "<a>" * MOST_DEPTH + "</a>" * MOST_DEPTH + "</domain>", "more elements than any"),
        ("<domain>" + "<a/>" * 60_000 + "</domain>", "more elements than any"),
        ("<domain>" + " " * MOST_BYTES + "</domain>", "more than any that libvirt makes"),
        ("<domain>", "not well-formed"),
        ("", "not well-formed"),
        ("<domain>\udcff</domain>", "not well-formed"),
        ("<network/>", "is no <domain>"),
        (
            "<domain><devices><disk><source file='x'/><target dev='../x'/></disk></devices></domain>",
            "is no name of a disk",
        ),
        (
            "<domain><devices><disk><driver type='a,b'/><source file='x'/><target dev='a'/></disk></devices></domain>",
            "has the format 'a,b'",
        ),
        ("<domain><devices>" + "<disk><source file='x'/><target dev='a'/></disk>" * 2 + "</devices></domain>", "two"),
    ],
)
def test_what_is_no_domain_is_refused(text: str, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_domain(text)


@pytest.mark.parametrize(
    ("inside", "name", "reason"),
    [
        ("<os><nvram type='block'><source dev='/d'/></nvram></os>", "the firmware's variables", "no file (block)"),
        ("<os><nvram type='network'><source name='/etc/x'/></nvram></os>", "the firmware's variables", "(network)"),
        ("<devices><tpm><backend type='passthrough'/></tpm></devices>", "the state of the TPM", "of the host"),
        ("<devices><tpm><backend type='external'/></tpm></devices>", "the state of the TPM", "(external)"),
        (
            "<devices><tpm><backend type='emulator'><source type='dir' path='/t'/></backend></tpm></devices>",
            "the state of the TPM",
            "kept in /t",
        ),
    ],
)
def test_state_that_lies_elsewhere_is_told_and_no_other_taken_for_it(inside: str, name: str, reason: str) -> None:
    found = parse_domain(f"<domain>{inside}</domain>")
    assert (found.nvram, found.has_tpm) == (None, False)
    ((told, why),) = found.unread
    assert told == name and reason in why


@given(st.text(max_size=200))
def test_whatever_comes_nothing_else_is_raised(text: str) -> None:
    with contextlib.suppress(FormatError):
        parse_domain(f"<domain>{text}</domain>")
    with contextlib.suppress(FormatError):
        parse_backup_job(text)


def test_a_backup_job_names_its_disks_and_no_others() -> None:
    disks = [PulledDisk("vda", "e0", "/s/<&'\">0"), PulledDisk("vdb", "e1", "/s/1", since="before")]
    text = pull_backup("/s/nbd", disks, ["vdc"])
    assert parse_backup_job(text) == ("/s/nbd", {"vda": "e0", "vdb": "e1"})
    first, second, third = parse(text, "domainbackup").iterfind("disks/disk")
    assert first.find("scratch").get("file") == "/s/<&'\">0" and first.get("backupmode") == "full"  # type: ignore[union-attr]
    assert (second.get("incremental"), second.get("exportbitmap")) == ("before", "e1")
    assert third.attrib == {"name": "vdc", "backup": "no"}


def test_a_checkpoint_tells_its_bitmaps() -> None:
    text = checkpoint("c <1>", "why", ["vda", "vdb"], ["vdc"])
    assert parse_checkpoint(text) == ("why", {"vda": "c <1>", "vdb": "c <1>"})
    assert parse_checkpoint(with_description(text, "<so>")) == ("<so>", {"vda": "c <1>", "vdb": "c <1>"})
    assert parse_checkpoint(with_description("<domaincheckpoint/>", "x")) == ("x", {})
