"""Golden texts: tests/golden/NAME.txt, rewritten by `pytest --update-golden`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from paths import TESTS

DIRECTORY = TESTS / "golden"


def add_option(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true",
                     help="write what the tests see to tests/golden instead of comparing")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden("name", text)` compares the text with tests/golden/name.txt."""

    def check(name: str, text: str) -> None:
        file = DIRECTORY / f"{name}.txt"
        if request.config.getoption("--update-golden"):
            DIRECTORY.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
        assert file.exists(), f"{file.name} is missing; run pytest --update-golden"
        assert text == file.read_text(encoding="utf-8")

    return check
