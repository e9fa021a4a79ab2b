"""The method of the paper (FastMIM, arXiv 2212.06593).

`mim` is the whole of it; `masking`, `targets`, `teacher`, `decoder` and `loss` are its parts, and `pictures` shows what
it learns.
"""
