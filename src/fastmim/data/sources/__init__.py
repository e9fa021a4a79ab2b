"""What `--data` can name, one module a kind."""

from fastmim.data.sources.opening import faster, open_source
from fastmim.data.sources.source import Source

__all__ = ["Source", "faster", "open_source"]
