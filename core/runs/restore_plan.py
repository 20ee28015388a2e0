"""What of an archive goes where, before anything is opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from pybackup.core.endpoints.drive_names import file_name
from pybackup.core.errors import Advice, ArchiveError, RequestError, TargetError
from pybackup.core.places.kinds import LocalPath, TargetPlace
from pybackup.core.sinks.output_place import LONGEST_NAME
from pybackup.formats.vma import DriveInfo, Header


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """Where each drive that is wanted goes, and (path, content) of each configuration that is."""

    drives: dict[DriveInfo, TargetPlace]
    configs: Sequence[tuple[str, bytes]] = ()


def plan_restore(
    header: Header,
    *,
    target: TargetPlace | None,
    places: Sequence[tuple[str, TargetPlace]] = (),
    drives: Sequence[str] = (),
    image_format: str | None = None,
    with_configs: bool = False,
    replace: bool = False,
) -> RestorePlan:
    """The plan for what a RestoreRequest asks, of which these are the fields (RequestError, TargetError, ArchiveError).

    Either a target is named, or places.
    """
    ending = _ending(image_format)
    if target is None:
        plan = _plan_places(header, places, ending)
    else:
        plan = _plan_target(target, [_drive(header, name) for name in drives] or header.drives, ending)
    return RestorePlan(plan, _plan_configs(header, target, plan, replace) if with_configs else ())


def is_folder(place: TargetPlace) -> bool:
    """Whether drives become files in it."""
    return isinstance(place, LocalPath) and (os.path.isdir(place.path) or place.path.endswith("/"))


def _plan_target(target: TargetPlace, drives: Sequence[DriveInfo], ending: str) -> dict[DriveInfo, TargetPlace]:
    if is_folder(target):
        return {drive: _file_in(target, drive, ending) for drive in drives}
    if len(drives) > 1:
        known = ", ".join(drive.name for drive in drives)
        is_new = isinstance(target, LocalPath) and not os.path.lexists(target.path)
        why = f"; {target} is no folder that exists" if is_new else ""
        raise RequestError(f"the archive has {len(drives)} drives ({known}): name a folder, or NAME=TARGET{why}")
    return {drives[0]: target}


def _plan_places(
    header: Header, places: Sequence[tuple[str, TargetPlace]], ending: str
) -> dict[DriveInfo, TargetPlace]:
    plan: dict[DriveInfo, TargetPlace] = {}
    for name, place in places:
        drive = _drive(header, name)
        if drive in plan:
            raise RequestError(f"drive {name} is named twice")
        if is_folder(place):
            place = _file_in(place, drive, ending)
        if (same := next((one for one in plan.values() if _is_same(place, one)), None)) is not None:
            raise RequestError(f"the target {place.text} is named twice" + ("" if same == place else f": it is {same}"))
        plan[drive] = place
    return plan


def _is_same(one: TargetPlace, other: TargetPlace) -> bool:
    """Whether two targets are one, by whatever names; also of files that do not exist yet."""
    if not (isinstance(one, LocalPath) and isinstance(other, LocalPath)):
        return one == other
    if os.path.realpath(one.path) == os.path.realpath(other.path):
        return True
    return os.path.exists(one.path) and os.path.exists(other.path) and os.path.samefile(one.path, other.path)


def _file_in(folder: TargetPlace, drive: DriveInfo, ending: str) -> LocalPath:
    """A drive's file in a folder (TargetError)."""
    name = f"{file_name(drive.name)}{ending}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise TargetError(
            f"cannot create a file for drive {drive.name} in {folder.text}: its name is longer than this filesystem"
            " allows",
            advice=Advice.RENAME,
        )
    return LocalPath(os.path.join(folder.text, name))


def _ending(image_format: str | None) -> str:
    """Of the names of files in a folder: one by which suffix_format() knows the format again."""
    return {"vpc": ".vhd", "parallels": ".hdd"}.get(image_format or "", f".{image_format or 'raw'}")


def _drive(header: Header, name: str) -> DriveInfo:
    drive = header.drive(name)
    if drive is None:
        known = ", ".join(one.name for one in header.drives)
        raise RequestError(f"the archive has no drive {name}; it has {known}")
    return drive


def _plan_configs(
    header: Header, target: TargetPlace | None, plan: dict[DriveInfo, TargetPlace], replace: bool
) -> Sequence[tuple[str, bytes]]:
    if target is None or not is_folder(target):
        raise RequestError("configurations are restored to a folder, and none is named")
    configs = [(os.path.join(target.text, file_name(name)), content) for name, content in header.configs]
    for path, _ in configs:
        if LocalPath(path) in plan.values():
            raise ArchiveError(f"a drive and a configuration of the archive would both be {path}; restore them apart")
        if os.path.exists(path) and not replace:
            raise TargetError(f"{path} exists already", advice=Advice.REPLACE)
    return configs
