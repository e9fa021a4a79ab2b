"""The kinds of `--data`, one module each: opened by `open_source`, read through the `Source` protocol."""

from fastmim.data.sources.identity import fingerprint
from fastmim.data.sources.opening import faster, open_source
from fastmim.data.sources.source import Source

__all__ = ["Source", "faster", "fingerprint", "open_source"]
