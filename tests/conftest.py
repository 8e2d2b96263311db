"""What every test may ask for."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real photos and official layouts, named by BSM_REAL_DATA."""
    folder = os.environ.get("BSM_REAL_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("BSM_REAL_DATA does not name a folder with real data")
    return Path(folder)
