"""The blocks of docs/coming-from run as they stand, in order: see tests/parallel/test_documentation.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parallel.pages import WITH_FRAMEWORKS
from tests.parallel.test_documentation import Reader, read_page

FRAMEWORK = {"scikit-learn": "sklearn", "ddp": "torch", "horovod": "torch", "keras": "numpy", "jax": "jax"}
"""What a page's code imports."""
INDEX = "docs/coming-from/index.md"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", [page for page in WITH_FRAMEWORKS if page != INDEX])
def test_page(page: str, reader: Reader) -> None:
    framework = FRAMEWORK[Path(page).stem]
    pytest.importorskip(framework, reason=f"{framework} is missing: make test-integrations installs it")
    read_page(page, reader)
