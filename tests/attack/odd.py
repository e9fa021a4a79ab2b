"""Texts that a name, a path or a number should not be."""

from __future__ import annotations

ODD = [
    "",
    " ",
    "\0",
    "a\0b",
    "~",
    "~nosuchuser/x",
    "/",
    ".",
    "..",
    "../../x",
    "x" * 300,
    "x/" * 3000,
    "\x1b]0;owned\x07",
]
ODD += [
    "\x1b[31mred",
    "[/red]",
    "[bold]x",
    "[link=file:///etc/passwd]x",
    "a\nb",
    "a\rb",
    "\u202etxt",
    "\udcff",
    "'",
    '"',
]
ODD += [
    "\\",
    "%s",
    "{x}",
    "${HOME}",
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned",
    "| touch pwned",
    "-",
    "--help",
]
ODD += [
    "é" * 200,
    "\ufeff",
    "samples",
    "hf-hub:evil/model",
    "hf_hub:evil/model",
    "local-dir:/etc",
    "null",
    "true",
    "1e400",
]
ODD += [
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/mem",
    "/proc/kmsg",
    "file:///etc/passwd",
    "ftp://127.0.0.1/x",
    "s3://x/y",
]
NUMBERS = [
    "0",
    "-1",
    "1e400",
    "-inf",
    "inf",
    "nan",
    "1e-400",
    "9" * 5000,
    "2.5",
    "0x10",
    "١",
    "²",
    "1_000",
    "",
    "null",
    "[]",
]
NUMBERS += [str(2**31), str(2**63), str(2**64), str(2**70), "1e308", "--1"]
