"""virsh as a program: what it says, when it says nothing, and whose libvirt it is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pybackup.core.errors import RequestError, SourceError
from pybackup.core.libvirt import thaw
from pybackup.core.libvirt.checkpoints import delete_checkpoint
from pybackup.core.libvirt.domain import all_domains, facts, find_domain
from pybackup.core.libvirt.pulled_job import current_job
from pybackup.core.libvirt.thaw import count_of
from pybackup.core.libvirt.virsh import MOST_SAID, NoAnswerError, Virsh, VirshError, reason_of, refuse_remote
from pybackup.core.system.watchdog_process import Note


@pytest.fixture(name="virsh")
def _virsh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script that is virsh here."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    path = tmp_path / "virsh"
    path.touch(0o755)
    return path


def ask(*words: str, given: str | None = None, seconds: float = 30.0) -> str:
    return asyncio.run(Virsh("qemu:///system").ask("look", *words, given=given, seconds=seconds))


def test_what_it_prints_is_the_answer(virsh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGUAGE", "de")  # which would be heeded in C.UTF-8
    virsh.write_text('#!/bin/sh\necho "$LC_ALL$LANGUAGE" "$@"; cat\n')
    assert ask("list", "--all", given="more") == "C.UTF-8 --quiet --connect qemu:///system list --all\nmore"
    assert ask("list") == "C.UTF-8 --quiet --connect qemu:///system list\n"


def test_what_it_complains_of_is_the_reason(virsh: Path) -> None:
    virsh.write_text("#!/bin/sh\nprintf 'error: one\\nerror: two\\n\\n' >&2; exit 1\n")
    with pytest.raises(VirshError, match=r"^cannot look: one: two$"):
        ask("list")
    virsh.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(VirshError, match="exit status 3"):
        ask("list")


def test_one_that_does_not_answer_or_does_not_stop_is_ended(virsh: Path) -> None:
    virsh.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(NoAnswerError, match="does not answer within"):
        ask("list", seconds=0.2)
    virsh.write_text("#!/bin/sh\nexec cat /dev/zero\n")
    with pytest.raises(VirshError, match=f"more than {MOST_SAID:,} bytes"):
        ask("list")


def test_where_there_is_none_its_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="libvirt-clients"):
        Virsh(None)


@pytest.mark.parametrize("uri", ["qemu:///system", "qemu:///session", "qemu+unix:///system?socket=/run/x"])
def test_the_libvirt_of_this_machine_will_do(uri: str) -> None:
    refuse_remote(uri)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("qemu+ssh://root@host/system", r"another machine.*qemu:///system"),
        ("qemu://host/system", "another machine"),
        ("qemu+tls:///system", "another machine"),
        ("qemu+ext:///system?command=x", "another machine"),
        ("xen:///system", "is no QEMU"),
        ("test:///default", "is no QEMU"),
        ("nonsense", "is no URI"),
        ("", "is no URI"),
    ],
)
def test_any_other_is_refused(uri: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        refuse_remote(uri)


def test_a_remote_default_is_not_even_asked(virsh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    virsh.write_text("#!/bin/sh\ntouch $0.asked; echo qemu:///system\n")
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "qemu+ssh://host/system")
    with pytest.raises(RequestError, match="another machine"):
        asyncio.run(Virsh.connect(None))
    assert not virsh.with_name("virsh.asked").exists()
    assert asyncio.run(Virsh.connect("qemu:///session")).uri == "qemu:///system"


NAMES = """#!/bin/sh
# The domain with the number 7 is called web; the one that is called 7 has no number.
shift 3
case "$*" in
'domuuid --domain 7') echo u-web ;;
'domname --domain u-web') echo web ;;
'domname --domain u-7') echo 7 ;;
'list --all --uuid') printf 'u-web\\nu-7\\n' ;;
'dominfo --domain u-7') printf 'Id:             -\\nManaged save:   yes\\n' ;;
dumpxml*u-7) echo '<domain><devices/></domain>' ;;
*) echo "error: what is $*" >&2; exit 1 ;;
esac
"""


def test_a_name_that_is_a_number_is_a_name(virsh: Path) -> None:
    virsh.write_text(NAMES)
    found = asyncio.run(find_domain(Virsh("qemu:///system"), "7"))
    assert (found.uuid, found.name, found.is_active, found.has_saved_memory) == ("u-7", "7", False, True)


def test_reasons_and_numbers_are_found_in_what_is_said() -> None:
    assert reason_of(b"error: a\nerror: b: \xff\n") == "a: b: \ufffd"
    assert reason_of(b"x" * 5000) == "x" * 1000
    assert [count_of(said) for said in ("Froze 3 filesystem(s)\n", "", "none")] == [3, 0, 0]


def test_a_name_may_have_line_ends_of_unicode(virsh: Path) -> None:
    name = "x\u2028Id: -\x85y"
    virsh.write_text(f"#!/bin/sh\nprintf '%s\\n' zoo '' '{name}'\n")
    assert asyncio.run(all_domains(Virsh("qemu:///system"))) == [name, "zoo"]
    assert facts(f"Id: 7\nName: {name}\n") == {"Id": "7", "Name": name, "": ""}


GERMAN = """#!/bin/sh
# A daemon that speaks German: web runs, and has no job; old is switched off; busy has a job, of which it is not told.
shift 3
case "$*" in
'list --uuid') printf 'web\\nbusy\\n' ;;
'domjobinfo --domain web') printf 'Job type:         None\\n' ;;
'domjobinfo --domain busy') printf 'Job type:         Unbounded\\nOperation:        Backup\\n' ;;
'checkpoint-list --domain web --name') echo there ;;
*) echo "Fehler: nichts da" >&2; exit 1 ;;
esac
"""


def test_that_there_is_nothing_is_known_in_whatever_language_the_daemon_says_so(virsh: Path) -> None:
    virsh.write_text(GERMAN)
    asked = Virsh("qemu:///system")
    assert asyncio.run(current_job(asked, "web")) is None
    assert asyncio.run(current_job(asked, "old")) is None
    with pytest.raises(VirshError, match="nichts da"):
        asyncio.run(current_job(asked, "busy"))
    asyncio.run(delete_checkpoint(asked, "web", "gone"))
    asyncio.run(delete_checkpoint(asked, "old", "there"))
    with pytest.raises(VirshError, match="nichts da"):
        asyncio.run(delete_checkpoint(asked, "web", "there"))


PAUSED = """#!/bin/sh
case "$4" in
list) cat $0.running ;;
*) echo x >> $0.asked
[ $(wc -l < $0.asked) -gt 1 ] && {{ {then}; }}
echo "error: Requested operation is not valid: domain is not running" >&2; exit 1 ;;
esac
"""


@pytest.mark.parametrize("then", ["echo Thawed; exit 0", "> $0.running"], ids=["goes on", "is switched off"])
def test_a_domain_that_is_paused_while_frozen_is_thawed_when_it_goes_on(
    virsh: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """libvirt calls a paused domain not running."""
    monkeypatch.setattr(thaw, "ATTEMPT_SECONDS", 0.01)
    virsh.write_text(PAUSED.format(then=then))
    virsh.with_name("virsh.running").write_text("u-web\n")
    thaw.thaw_after_death([Note(str(thaw.FrozenDomain("qemu:///system", "u-web", "web", 1)), ())])
    assert len(virsh.with_name("virsh.asked").read_text().split()) == 2
