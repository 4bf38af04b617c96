"""One pool of warm processes for all tests of this folder."""

import pytest

from tests.parallel.pool import Pool


@pytest.fixture(scope="session")
def pool():
    made = Pool(8)
    yield made
    made.close()
