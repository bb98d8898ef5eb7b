"""Which code made a row: the commit, or a hash of the sources where there is no git."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path

from orchestrator.catalogue import ROOT

PACKAGES = ("orchestrator", "workers", "methods", "attacks")


@cache
def commit() -> str:
    """'1a2b3c4d5e6f', with a '+' if tracked files differ from it, or 'tree:…' outside a git checkout."""
    if not (ROOT / ".git").exists():
        return f"tree:{source_hash()[:12]}"
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return f"tree:{source_hash()[:12]}"


def source_hash() -> str:
    """SHA-256 over the names and contents of all Python sources of the four packages."""
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    content = hashlib.sha256()
    for path in files:
        content.update(str(path.relative_to(ROOT)).encode() + b"\0" + Path(path).read_bytes())
    return content.hexdigest()


def _git(*arguments: str) -> str:
    done = subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
