"""64 processes as tp 8 x pp 8, on gloo: `make test-64`, about six minutes and 14 GB."""

import pytest

from tests.train.runs import assert_same_run, launch, train

FLAGS = {"steps": 5, "global_batch_size": 8, "micro_batch_size": 2, "validation_every": 5, "dtype": "float64"}


@pytest.mark.large
def test_64_ranks_equal_one_process(shards, tmp_path):
    train(shards, tmp_path / "one", **FLAGS)
    result = launch(shards, tmp_path / "64", processes=64, tp=8, pp=8, **FLAGS)
    assert result.returncode == 0, result.stderr
    assert_same_run(tmp_path / "64", tmp_path / "one", step=5)
