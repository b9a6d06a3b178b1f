"""The site builds without a warning and fetches nothing from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "--quiet", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert {"index.html", "tutorial.html", "STATUS.html"} <= {page.name for page in pages}
    for page in pages:
        text = page.read_text()
        # Links of the footer and in text may lead anywhere; scripts, styles, pictures and fonts may not.
        found = re.findall(r"<(?:script|img|iframe|source|video)[^>]+src=[\"']?(https?:)?//", text)
        found += re.findall(r"<link[^>]+rel=[\"']?(?:stylesheet|preconnect|preload|icon)[^>]+https?://", text)
        assert found == [], page
        assert "<!-- reference" not in text and "<!-- example" not in text
    operators = (tmp_path / "site" / "reference" / "operators.html").read_text()
    assert "TrainXGBoostOperator" in operators
