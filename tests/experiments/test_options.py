"""Options that drivers share."""

from __future__ import annotations

import pytest

from mpiflow.core.errors import InputError
from mpiflow.experiments.options import add_barriers, at_least, driver_parser, list_of


def test_every_driver_says_where_results_go_and_what_a_smoke_run_is() -> None:
    parser = driver_parser("One.\n\nTwo.", "results/x", "tiny")
    add_barriers(parser)
    options = parser.parse_args([])
    assert (options.out, options.smoke) == ("results/x", False)
    assert (options.barriers, options.axis_order) == ("default", "paper")
    assert parser.parse_args(["--smoke", "--out", "y"]).out == "y"
    assert parser.format_help().count("One.") == 1
    assert "Two." not in parser.format_help()


def test_lists_have_commas_between(capsys: pytest.CaptureFixture[str]) -> None:
    assert list_of(int)("8,16") == [8, 16]
    assert list_of(float, empty=True)("") == []
    parser = driver_parser(None, "results/x")
    parser.add_argument("--cells", type=list_of(int))
    for wrong in ("", "8;16", "8,"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--cells", wrong])
        assert f"invalid list_with_commas value: '{wrong}'" in capsys.readouterr().err


def test_numbers_that_are_too_small_are_refused() -> None:
    parser = driver_parser(None, "results/x")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(["--seeds", "1"])
    at_least(options, seeds=1)
    with pytest.raises(InputError, match="seeds=1: allowed is 2 or more"):
        at_least(options, seeds=2)
