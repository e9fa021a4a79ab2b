"""The attack: does fastmim keep its promises under kills, damage and hostile input? A slow suite of its own.

`make attack` runs it and prints a table of tries and failures; `make test` never does. Each module below attacks one
promise: PROMISE says it, CASES is the number of cases at SCALE=1, and `attempt(world, random)` makes one case and
returns what went wrong. A case depends only on the seed, the module and its number, so it can be repeated alone.
"""
