"""Run `python -m benchmarks.database_outage` in a quarter of the time."""

from __future__ import annotations

import pytest

from benchmarks import database_outage

pytestmark = [pytest.mark.own_site, pytest.mark.soak]


def test_outage__of_the_database_of_souvenirs_loses_no_visit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert database_outage.main(["--quick"]) == 0, capsys.readouterr()
