"""What every verb stands on: extras, environment, the progress meter."""

import json
import socket

import pytest

from volution._support.console import Meter
from volution._support.environment import environment
from volution._support.extras import MissingExtra, needs


def test_a_broken_import_of_our_own_is_not_blamed_on_an_extra():
    with pytest.raises(ModuleNotFoundError) as info, needs("train"):
        import volution.no_such_module  # noqa: F401
    assert not isinstance(info.value, MissingExtra)


def test_the_environment_is_json_and_names_no_computer():
    text = json.dumps(environment())
    assert json.loads(text)["machine"]["cores"] > 0
    assert socket.gethostname() not in text


def test_a_meter_ends_its_line_also_after_an_error(capsys):
    def work():
        with Meter("working", total=4) as meter:
            meter.add(2, "half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert "working" in capsys.readouterr().err
