from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pybackup.core.cow.claims import Claims
from pybackup.core.device import CLUSTER_SIZE
from pybackup.core.inflight import Range

CLUSTERS = 20
cluster = st.integers(0, CLUSTERS)


class Copying(RuleBasedStateMachine):
    """Claims against three sets: dirty, claimed, done."""

    def __init__(self) -> None:
        super().__init__()
        self.copy = Claims(CLUSTERS * CLUSTER_SIZE - 1)
        self.dirty = set(range(CLUSTERS))
        self.claims: list[Range] = []

    @rule(one=cluster, other=cluster, most=st.none() | st.integers(1, 5))
    def claim(self, one: int, other: int, most: int | None) -> None:
        first, end = sorted((one, other))
        wanted = self.dirty & set(range(first, end))
        claimed = self.copy.claim(first, end, most)
        if claimed is None:
            assert not wanted
            return
        got = set(range(claimed.start, claimed.end))
        assert got and got <= wanted and claimed.start == min(wanted)
        # It is the whole of the first run, or as much as may be taken.
        assert claimed.end not in wanted or len(got) == most
        assert most is None or len(got) <= most
        self.dirty -= got
        self.claims.append(claimed)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), copied=st.booleans())
    def settle(self, data: st.DataObject, copied: bool) -> None:
        claimed = self.claims.pop(data.draw(st.integers(0, len(self.claims) - 1)))
        self.copy.settle(claimed, copied=copied)
        if not copied:
            self.dirty |= set(range(claimed.start, claimed.end))
        self.copy.abandon(claimed)  # it was settled: nothing happens

    @precondition(lambda self: self.claims)
    @rule()
    def abandon(self) -> None:
        claimed = self.claims.pop()
        self.copy.abandon(claimed)
        self.dirty |= set(range(claimed.start, claimed.end))

    @rule(one=cluster, other=cluster)
    def ask(self, one: int, other: int) -> None:
        first, end = sorted((one, other))
        dirty = bool(self.dirty & set(range(first, end)))
        in_flight = any(claim.start < end and first < claim.end for claim in self.claims)
        assert self.copy.is_dirty(first, end) == dirty
        assert self.copy.is_untouchable(first, end) == (dirty or in_flight)
        assert self.copy.next_dirty(first) == min((one for one in self.dirty if one >= first), default=None)

    @invariant()
    def sums_agree(self) -> None:
        assert self.copy.dirty_bytes == len(self.dirty) * CLUSTER_SIZE
        assert self.copy.is_finished == (not self.dirty and not self.claims)


TestCopying = Copying.TestCase
TestCopying.settings = settings(max_examples=60, deadline=None)
