"""Benchmarks of fastmim against plain reference forms, written as dated records."""
