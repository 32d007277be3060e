"""Put the site that ``make docs`` has built beside those of other versions: ``make docs-versions``.

``docs/_build/site`` gets a folder for each version that was built so, named by its git tag, or
``latest`` without one; and ``versions.js``, which names them for the list in the sidebar. It is a
script, not JSON, because a page that is opened from a disk may load nothing else.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "docs" / "_build"
#: What has no tag.
LATEST = "latest"


def name_here() -> str:
    """The tag of the commit that is checked out, without its v; else ``latest``."""
    found = subprocess.run(
        ["git", "describe", "--tags", "--exact-match", "--match", "v[0-9]*"],  # noqa: S607
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return found.stdout.strip().removeprefix("v") or LATEST


def ordered(names: list[str]) -> list[str]:
    """Latest first, then versions from the newest on."""
    return sorted(names, key=lambda name: (name == LATEST, _numbers(name)), reverse=True)


def _numbers(name: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", name)]


def publish(html: Path, site: Path, name: str) -> list[str]:
    """Copy a site to its place among the versions, and name all of them."""
    shutil.rmtree(site / name, ignore_errors=True)
    shutil.copytree(html, site / name)
    names = ordered([path.parent.name for path in site.glob("*/index.html")])
    (site / "versions.js").write_text(f"window.mpiflow_versions = {json.dumps(names)};\n")
    newest = next((one for one in names if one != LATEST), LATEST)
    (site / "index.html").write_text(
        f'<!doctype html><meta http-equiv="refresh" content="0; url={newest}/index.html">\n'
        f'<title>mpiflow</title><a href="{newest}/index.html">mpiflow {newest}</a>\n'
    )
    return names


if __name__ == "__main__":
    print(BUILT / "site" / "index.html", *publish(BUILT / "html", BUILT / "site", name_here()))
