"""What tells one encoding from another."""

import hashlib
import json
from typing import Any


def fingerprint(name: str, *parts: Any) -> str:
    """A digest of a task's name with its version, and of what its encoding depends on; the parts are JSON."""
    return hashlib.blake2b(json.dumps((name, *parts)).encode(), digest_size=16).hexdigest()
