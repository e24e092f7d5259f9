"""The judge works when nobody waits, so its verdict often comes after its user's: the user's stands."""

import contextlib
import dataclasses

import numpy as np
import pytest

from tests import learn_rig as rig


@pytest.mark.parametrize("apart", [0, 12])
def test_a_judge_that_comes_late_does_not_overrule_the_user(tmp_path, apart):
    """In the same batch, and batches later."""
    with contextlib.closing(rig.opened(tmp_path)) as log:
        said = [rig.turn(i, session="s0", score=1.0) for i in range(40)]
        for i, (interaction, verdict) in enumerate(said):
            user = dataclasses.replace(verdict, event_id=f"u{i}", by="user", score=0.0)
            rig.put(log, interaction, user)
            if i >= apart:
                rig.put(log, *said[i - apart])
        for late in said[len(said) - apart :]:
            rig.put(log, *late)
        loop = rig.loop_on(tmp_path, log)
        loop.begin()
        while loop.turn():
            pass
        assert loop.learned == 80
        state = loop.state()
    (rows,) = (name for name in ("learner/buffer/rows", "holdout/rolling") if len(state.get(f"{name}/id", ())))
    assert len(np.unique(state[f"{rows}/id"])) == len(state[f"{rows}/id"]) == 40
    assert not state[f"{rows}/quality"].any()
