"""Every action's names on the wire, held against botocore's model."""

import json
import pathlib
import re
import subprocess
import sys

from botocore import xform_name


def test_names_on_the_wire_are_botocores(shapes, tmp_path):
    file = tmp_path / "shapes.json"
    file.write_text(json.dumps(shapes))
    oracle = pathlib.Path(__file__).with_name("oracle.py")
    done = subprocess.run([sys.executable, oracle, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_action_is_called_by_a_test(shapes):
    """By its method of botocore's client, or by its name where no client is used."""
    files = pathlib.Path(__file__).parent.glob("test_*.py")
    tests = "".join(file.read_text() for file in files)
    actions = [action["name"] for service in shapes for action in service["actions"]]
    assert actions
    uncalled = [name for name in actions if not re.search(rf"\b({xform_name(name)}|{name})\b", tests)]
    assert not uncalled, f"add tests in tests/api of {uncalled}"
