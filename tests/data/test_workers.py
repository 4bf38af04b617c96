"""Worker processes: results by number, errors where they belong."""

import operator
import os

import pytest

from data.workers import Workers


@pytest.mark.parametrize("count", [1, 2])
def test_every_task_is_answered_by_its_number(count):
    with Workers(10, count) as workers:
        assert dict(workers.run(operator.add, [1, 2, 3])) == {0: 11, 1: 12, 2: 13}
        assert dict(workers.run(operator.mul, [4])) == {0: 40}
        assert dict(workers.run(operator.mul, [])) == {}
        with pytest.raises(TypeError):
            dict(workers.run(operator.add, ["text"]))


def test_a_killed_worker_is_one_clear_error():
    with Workers(["false"], 2) as workers, pytest.raises(ValueError, match="a worker process was killed"):
        dict(workers.run(os.execv, ["/bin/false"]))  # the process is replaced by one that ends at once
