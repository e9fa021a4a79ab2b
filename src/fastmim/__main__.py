"""`python -m fastmim` is the `fastmim` command (for torchrun and the like)."""

from fastmim.cli import main

if __name__ == "__main__":
    main()
