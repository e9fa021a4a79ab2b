"""The hub that published weights and datasets come from: a network without it is noticed at once."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

_TIMEOUT_S = 5.0


def reachable() -> bool:
    """Whether the hub answers; True where a proxy would have to be asked."""
    if getproxies():
        return True
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        socket.create_connection((hub.hostname, hub.port or 443), timeout=_TIMEOUT_S).close()
    except OSError:
        return False
    return True


@contextmanager
def only_if_reachable() -> Iterator[None]:
    """While the block runs, let the hub's client take from its cache only, unless the hub answers.

    Left alone it tries each file six times, for half a minute a file, before it says that there is no network.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
