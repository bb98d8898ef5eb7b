"""What a user can put right: shown as one clear line each, without a stack trace, exit code 2."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UserError(Exception):
    """One or more mistakes in what the user gave; `problems` holds one line for each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def nearest(word: str, allowed: Iterable[str]) -> str:
    """' Did you mean 'x'?' for the allowed word closest to `word`; empty when none is close."""
    close = difflib.get_close_matches(str(word), list(allowed), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def without_keys(text: str) -> str:
    """A text whose URIs have lost their user:password@, which may be keys of an object store, and the values
    of what in their ?query is named as one, e.g. password.
    """
    text = re.sub(r"(\w+://)[^/\s@'\"]*@", r"\1", text)
    return re.sub(r"(?i)([?&][^=&\s'\"]*(?:passw|secret|token|key)[^=&\s'\"]*=)[^&\s'\"]*", r"\1…", text)
