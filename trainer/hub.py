"""Whether the hub answers, asked once and not for long, before a library asks it again and again."""

from __future__ import annotations

import os
from functools import cache


@cache
def reachable() -> bool:
    """Whether something answers at the hub's address; false at once where `HF_HUB_OFFLINE` is set.

    Without a network huggingface_hub tries six times over 23 seconds for each file before it says so. One try here
    waits 5 seconds at most for each of its phases (finding the name, connecting, reading), or what
    `HF_HUB_ETAG_TIMEOUT` says. What a proxy answers counts: it is asked by huggingface_hub's own session.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or 5))
    except Exception:  # of the network in any form, by whichever library the session is of
        return False
    return True
