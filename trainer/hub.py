"""A quick check that the Hugging Face hub can be reached, made before a library spends time on retries."""

from __future__ import annotations

import os
from functools import cache


@cache
def is_reachable() -> bool:
    """Return whether a server answers at the hub's address; False at once if `HF_HUB_OFFLINE` is set.

    Without a network, huggingface_hub tries six times over 23 seconds for each file before it fails. This single try
    waits at most 5 seconds, or `HF_HUB_ETAG_TIMEOUT`, for each of its phases: name resolution, connection, response.
    An answer from a proxy counts: the request uses huggingface_hub's own session.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or 5))
    except Exception:  # any network error; its type depends on the library behind the session
        return False
    return True
