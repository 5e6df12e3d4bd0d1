"""What README.md claims: the client in Python, and the settings and their flags."""

import os
import re
import subprocess
import sys

import pytest
from processes import PROGRAMS, ROOT

README = (ROOT / "README.md").read_text()


def test_the_python_client_of_the_readme_works(cluster, stubs):
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "127.0.0.1:50050" in code
    made = os.path.dirname(stubs.router_server_pb2.__file__)
    done = subprocess.run(
        [sys.executable, "-c", code.replace("127.0.0.1:50050", cluster.router)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": made, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "b'hello'\n"), done.stderr


@pytest.mark.parametrize("program", ["milena-cache", "milena-router"])
def test_the_settings_of_the_readme_are_those_of_the_program(program):
    section = README.split(f"**`{program}`**\n")[1].split("\n**`")[0]
    written = {}
    for flag, variables in re.findall(r"^\| (?:`(--[\w-]+)`)? *\| ([A-Z0-9_, ]+) \|", section, re.MULTILINE):
        if flag:
            written[flag] = variables.split(", ")[0]

    text = subprocess.run([PROGRAMS / program, "--help"], capture_output=True, text=True, timeout=60).stdout
    flags = {flag for flag in re.findall(r"^ +(?:-\w, )?(--[a-z0-9-]+)", text, re.MULTILINE)}
    assert set(written) == flags - {"--help", "--version"}
    for flag, variable in written.items():
        assert variable == flag.removeprefix("--").replace("-", "_").upper()
        assert f"[env: {variable}=" in text
