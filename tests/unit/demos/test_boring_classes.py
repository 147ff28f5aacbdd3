from __future__ import annotations

import fulgur.testing
from fulgur.demos import boring_classes


def test_they_are_those_of_the_testing_kit() -> None:
    assert all(getattr(boring_classes, name) is getattr(fulgur.testing, name) for name in boring_classes.__all__)
    assert len(boring_classes.__all__) == 6
