"""One worker and one stage for all kinds of examples."""

from collections.abc import Iterator

import pytest

from tests.fuzz.stage import Stage
from tests.fuzz.worker import Worker


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Worker() as worker:
        yield Stage(tmp_path_factory.mktemp("fuzz"), worker)
