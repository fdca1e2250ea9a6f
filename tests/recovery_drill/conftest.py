"""The library of a faulty disk, for all tests of this folder."""

from pathlib import Path

import pytest
from faulty_disk import build


@pytest.fixture(scope="session")
def faulty_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("library"))
