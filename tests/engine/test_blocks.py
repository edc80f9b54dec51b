from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tinyvllm.engine.blocks import BlockManager
from tinyvllm.errors import CapacityError, InvariantError

NUM_BLOCKS = 12


class BlockMachine(RuleBasedStateMachine):
    """Owners take, share and give back blocks; the manager must agree with a plain list of who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(NUM_BLOCKS)
        self.owners: list[np.ndarray] = []

    @rule(count=st.integers(0, NUM_BLOCKS + 2))
    def allocate(self, count: int) -> None:
        free = self.manager.num_free
        if count > free:
            with pytest.raises(CapacityError, match=f"{count} KV blocks needed, {free} of {NUM_BLOCKS} are free"):
                self.manager.allocate(count)
            return
        taken = self.manager.allocate(count)
        others = {int(b) for owner in self.owners for b in owner}
        assert len(taken) == count
        assert not others & set(taken.tolist())
        self.owners.append(taken)

    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        if self.owners:
            shared = self.owners[data.draw(st.integers(0, len(self.owners) - 1))]
            self.manager.share(shared)
            self.owners.append(shared.copy())

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.owners:
            self.manager.release(self.owners.pop(data.draw(st.integers(0, len(self.owners) - 1))))

    @rule(data=st.data())
    def foresee(self, data: st.DataObject) -> None:
        chosen = [owner for owner in self.owners if data.draw(st.booleans())]
        rest = {int(b) for owner in self.owners if not any(owner is c for c in chosen) for b in owner}
        freed = {int(b) for owner in chosen for b in owner} - rest
        entries = np.concatenate([np.zeros(0, np.int32), *chosen])
        assert self.manager.freed_by(entries) == len(freed)

    @invariant()
    def adds_up(self) -> None:
        self.manager.check(np.concatenate([np.zeros(0, np.int32), *self.owners]))


TestBlocks = BlockMachine.TestCase
TestBlocks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_block_released_twice_is_noticed() -> None:
    manager = BlockManager(4)
    blocks = manager.allocate(2)
    manager.release(blocks)
    with pytest.raises(InvariantError, match="released twice"):
        manager.release(blocks)


def test_check_notices_a_leak() -> None:
    manager = BlockManager(4)
    manager.allocate(2)
    with pytest.raises(InvariantError, match="differ from the block tables"):
        manager.check(np.zeros(0, np.int32))
