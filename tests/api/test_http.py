"""HTTP and TLS below the API, by scripts that speak it themselves; each is a process
with a cloud of its own, as its limits are a process's.
"""

import os
import pathlib
import subprocess
import sys

import pytest

from support import Asked


@pytest.mark.parametrize("script, question", [
    ("plain_http.py", "cloud"), ("flood.py", "cloud"), ("tls.py", "cloud tls")])
def test_script(script, question):
    asked = Asked(question)
    told = asked.answer
    environment = {
        **os.environ, "PYTHONDONTWRITEBYTECODE": "1", "AWS_ENDPOINT_URL": told["endpoint"],
        "AWS_ACCESS_KEY_ID": told["access_key_id"], "AWS_SECRET_ACCESS_KEY": told["secret_access_key"],
        "AWS_DEFAULT_REGION": told["region"]}
    arguments = [told["certificate"]] if "certificate" in told else []
    done = subprocess.run([sys.executable, pathlib.Path(__file__).with_name(script), *arguments],
                          env=environment, capture_output=True, text=True, check=False)
    asked.close()
    assert done.returncode == 0, done.stdout + done.stderr
