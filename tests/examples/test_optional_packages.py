"""What programs in `examples/` say where an optional package is missing."""

import os
import subprocess
import sys
from pathlib import Path


EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_app_names_its_extra():
    code = f"import runpy, sys; sys.modules['gradio'] = None; runpy.run_path({str(EXAMPLES / 'demo_app.py')!r})"
    path = os.pathsep.join(sys.path)
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert ended.returncode == 1
    assert 'pip install "llm-asr[app]"' in ended.stderr
