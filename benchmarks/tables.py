"""Write README's table of figures from the newest records: `python benchmarks/tables.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- figures: python benchmarks/tables.py -->", "<!-- end of figures -->"

# A row: what is claimed, the record, and the path to the median in its summary.
ROWS = (
    ("HOG target, eager: times less CPU time than the obvious form", "hog", ("times_faster_eager",)),
    (
        "The same where malloc keeps freed memory, which spares the obvious form its page faults",
        "hog",
        ("times_faster_eager_memory_kept",),
    ),
    ("HOG target, compiled: times less CPU time than the obvious form", "hog", ("times_faster_compiled",)),
    (
        "Folder of JPEGs: times less CPU time per image than Pillow + torchvision",
        "data-path",
        ("times_fewer_cpu_seconds", "fastmim, uint8 batches"),
    ),
    ("Its JPEG pack: likewise", "data-path", ("times_fewer_cpu_seconds", "jpeg pack, uint8 batches")),
    ("Its raw pack: likewise", "data-path", ("times_fewer_cpu_seconds", "raw pack, uint8 batches")),
    *(
        (f"Training step, {what}: times the images per second of the plain float32 form", "bench-step", path)
        for name, case in (
            ("ViT-S", "vit_small_patch16_224, 128 px, hog, in-place"),
            ("Swin-T", "swin_tiny_patch4_window7_224, 128 px, hog, in-place"),
            ("ConvNeXt-T", "convnext_tiny, 128 px, hog, in-place"),
        )
        for what, path in (
            (f"{name} at 128 px, bf16", ("cases", case, "forms", "fastmim bf16", "times_faster")),
            (f"{name} at 128 px, float32 too", ("cases", case, "forms", "fastmim float32", "times_faster")),
        )
    ),
    (
        "MAE at 224 px: time of an image over FastMIM's at 128 px (ViT-S)",
        "bench-methods",
        ("methods", "MAE 224", "times_slower"),
    ),
    ("SimMIM at 192 px: likewise", "bench-methods", ("methods", "SimMIM 192", "times_slower")),
    (
        "Fashion-MNIST, 600 labels: points of top-1 that HOG pre-training adds to the same network from scratch",
        "fashion-mnist",
        ("600 labels", "hog", "gain"),
    ),
    ("Training loop: CPU time of a step over a bare loop's", "loop-overhead", ("fastmim_over_bare",)),
    ("Fine-tuning loop: likewise", "finetune-overhead", ("fastmim_over_bare",)),
    (
        "Feature extraction: the main process's CPU time over the bare forward pass's",
        "features",
        ("extract over bare forward, CPU of the main process",),
    ),
    ("`fastmim --help`: seconds of CPU", "help", ("seconds",)),
)


def newest(name: str) -> tuple[str, dict[str, Any]] | None:
    """File name and content of the newest record of a benchmark."""
    paths = sorted((ROOT / "benchmarks/records").glob(f"{name}-[0-9]*.json"))
    return (paths[-1].name, json.loads(paths[-1].read_text())) if paths else None


def table() -> str:
    """The table in Markdown; a benchmark without a record has no row."""
    lines = ["| figure | median | range | measured on | record |", "|---|---|---|---|---|"]
    for claim, name, path in ROWS:
        found = newest(name)
        if found is None:
            continue
        file, record = found
        value = record["summary"]
        for key in path:
            value = value[key]
        hardware = record["hardware"]
        where = hardware.get("accelerator", f"{hardware['processor']}, {hardware['cores']} cores")
        low, high = (f"{value[bound]:.2f}" for bound in ("min", "max"))
        link = f"[{file}](benchmarks/records/{file})"
        lines.append(f"| {claim} | {value['median']:.2f} | {low} to {high} | {where} | {link} |")
    return "\n".join(lines)


def updated(readme: str) -> str:
    """README's text with the present table."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(updated(path.read_text()))
