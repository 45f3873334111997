"""Every action's names on the wire, held against botocore's model."""

import json
import pathlib
import subprocess
import sys


def test_names_on_the_wire_are_botocores(shapes, tmp_path):
    file = tmp_path / "shapes.json"
    file.write_text(json.dumps(shapes))
    oracle = pathlib.Path(__file__).with_name("oracle.py")
    done = subprocess.run([sys.executable, oracle, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
