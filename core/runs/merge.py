"""The course of every merge: a chain of archives, or one of any origin -> clusters -> writer -> sink."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from pybackup.core.archive.chain import Chain, ParentSearch, open_chain
from pybackup.core.archive.chain_clusters import ChainClusters
from pybackup.core.archive.chain_walk import FETCHES
from pybackup.core.archive.create import ArchiveOptions, open_sink, writer_for
from pybackup.core.archive.index import NoIndexError
from pybackup.core.archive.open import has_ranges, name_of, open_archive
from pybackup.core.archive.stream import Digests
from pybackup.core.errors import Advice, RequestError
from pybackup.core.jobs.merge import Clusters, MergeJob
from pybackup.core.jobs.stream_clusters import StreamClusters
from pybackup.core.places.kinds import ArchivePlace, LocalPath, NewArchivePlace, StoreUrl
from pybackup.core.places.same_file import is_same_file
from pybackup.core.secrets.encrypting_sink import Encryption
from pybackup.core.trace import Trace
from pybackup.formats.archive import DEFAULT_FRAME_SIZE

from .course import verifier

LEVEL = 1
"""For what is packed anew. After thirty nights that each change one cluster in a hundred that is half of an archive:
level 3 takes a quarter more time for all, and saves 1.3 % of the size."""


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """What is asked of a merge.

    ``archive``: the newest of the chain, or any archive; ``output``: where the full one goes. ``parents``: folders, or
    prefixes of stores, where parents are looked for that do not lie beside their children. ``level``: for what is
    compressed anew. ``frame_size``: bytes that a frame of the new archive may have; None: frames that can be copied
    stay as they are, others have the usual size. ``replace``: an archive that is there, which is none of the chain.
    ``verify``: read the archive back before it gets its name, which only a file's can be. ``speed``: bytes of data a
    second, 0 for no limit. ``encryption``: for whom, None for everybody, which is refused where
    anything is encrypted of what it is made of, unless ``decrypt``.
    """

    archive: ArchivePlace
    output: NewArchivePlace
    parents: Sequence[LocalPath | StoreUrl] = ()
    level: int = LEVEL
    frame_size: int | None = None
    replace: bool = False
    verify: bool = False
    threads: int = 1
    speed: int = 0
    encryption: Encryption | None = None
    decrypt: bool = False


@dataclass(frozen=True, slots=True)
class Merge:
    """A merge that only needs to be run; ``merged``: the archives that it is made of, newest first."""

    job: MergeJob
    merged: Sequence[ArchivePlace]


@contextmanager
def merge(request: MergeRequest, *, trace: Trace | None = None) -> Iterator[Merge]:
    """Within the body, a merge that only needs to be run (``await merge.job.run()``); nothing stays open after it.

    Nothing is written before the job runs, and nothing is visible under the output's name before it is whole and
    durable; nothing else is touched. Raises every PybackupError: what is missing of the chain, or damaged in its
    indexes, is told here. Not in an event loop: the archives' beginnings and ends are read here. A job that is made
    has to be run, or cancelled and then run.
    """
    trace = trace or Trace()
    with ExitStack() as stack:
        clusters, merged, encrypted = _open(request, stack)
        if encrypted and request.encryption is None and not request.decrypt:
            raise RequestError(
                f"{name_of(encrypted[0])} is encrypted, and what it is merged into would not be",
                advice=Advice.ENCRYPT_OR_NOT,
            )
        for place in merged:
            _refuse_own_parts(place, request.output)
        header = clusters.header
        options = ArchiveOptions(
            header.uuid,
            header.created,
            request.level,
            request.frame_size or DEFAULT_FRAME_SIZE,
            request.threads,
            encryption=request.encryption,
        )
        pool = stack.enter_context(_threads(request.threads, "compress"))
        sink = open_sink(request.output, replace=request.replace)
        writer = writer_for(header.drives, header.configs, options, sink, pool, trace)
        before_commit = verifier(sink, pool) if request.verify else None
        job = MergeJob(clusters, writer, before_commit=before_commit, speed=request.speed, trace=trace)
        yield Merge(job, merged)


def _threads(count: int, name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix=f"pybackup-{name}")


def _open(request: MergeRequest, stack: ExitStack) -> tuple[Clusters, Sequence[ArchivePlace], Sequence[ArchivePlace]]:
    """What is to be merged, the archives that it lies in, and which of these are encrypted.

    One without an index is read from beginning to end.
    """
    if has_ranges(request.archive):
        try:
            chain = stack.enter_context(open_chain(request.archive, ParentSearch(request.parents)))
        except NoIndexError:
            pass
        else:
            return _of_chain(chain, request, stack), [link.place for link in chain.links], chain.encrypted
    stream = stack.enter_context(open_archive(request.archive, threads=request.threads, digests=Digests.UNPROVEN))
    clusters = StreamClusters(stream, stack.enter_context(_threads(request.threads, "scan")))
    return clusters, [request.archive], [request.archive] if stream.is_encrypted else []


def _of_chain(chain: Chain, request: MergeRequest, stack: ExitStack) -> ChainClusters:
    pool = stack.enter_context(_threads(request.threads + FETCHES, "decompress"))
    identities = [link.identity for link in chain.links]
    return ChainClusters(chain.view, identities, pool, stop=chain.stop, largest_frame=request.frame_size)


def _refuse_own_parts(part: ArchivePlace, output: NewArchivePlace) -> None:
    if is_same_file(part, output) or (isinstance(part, StoreUrl) and part == output):
        raise RequestError(f"{part} would be replaced by the archive made of it")
