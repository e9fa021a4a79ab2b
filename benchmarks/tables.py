"""Write the tables of README and docs/as-published.md from the newest records: `python benchmarks/tables.py`."""

from __future__ import annotations

from pathlib import Path

from fastmim.bench import records
from fastmim.bench.markdown import markdown, number
from fastmim.system import files

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks/records"
BEGIN, END = "<!-- figures: python benchmarks/tables.py -->", "<!-- end of figures -->"

# Rows: the claim, the name of the record, and the keys of its median in the summary.
ROWS = (
    ("HOG target: times less CPU time than its one-hot form", "bench-hog", ("forms", "fastmim", "times_faster")),
    *(
        (claim, "bench-data", ("pipelines", pipeline, "times_faster"))
        for claim, pipeline in (
            ("Folder of JPEGs: times less CPU time per image than Pillow + torchvision", "folder"),
            ("Its JPEG pack: likewise", "jpeg pack"),
            ("Its raw pack: likewise", "raw pack"),
        )
    ),
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
    *(
        (
            f"On a GPU, {what}, bf16 and compiled: times the images per second of the plain fp16 form",
            "gpu-step-cuda",
            (case, "times_faster"),
        )
        for what, case in (
            ("ViT-B at 128 px, 1024 images a step", "vit_base_patch16_224, in-place, batch 1024"),
            ("Swin-B, 256 images", "swin_base_patch4_window7_224, in-place, batch 256"),
            ("ConvNeXt-B, 256 images", "convnext_base, in-place, batch 256"),
        )
    ),
    *(
        (
            f"On a GPU, {method}: time of an image over FastMIM's at 128 px (ViT-B, both compiled)",
            "gpu-methods-cuda",
            ("vit_base_patch16_224", "methods", method, "times_slower"),
        )
        for method in ("MAE 224", "SimMIM 192", "SimMIM 224")
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


def table() -> str:
    """The table in Markdown; a benchmark without a record has no row."""
    rows = []
    for claim, name, keys in ROWS:
        path = records.newest(FOLDER, name)
        if path is None:
            continue
        record = files.read_json(path)
        value = record["summary"]
        for key in keys:
            value = value[key]
        link = f"[{path.name}](benchmarks/records/{path.name})"
        spread = f"{value['min']:.2f} to {value['max']:.2f}"
        rows.append((claim, f"{value['median']:.2f}", spread, records.machine(record), link))
    return markdown(("figure", "median", "range", "measured on", "record"), rows, num_text=5)


def parity() -> str:
    """The table of distances to the papers' own code, in Markdown."""
    path = records.newest(FOLDER, "parity")
    assert path is not None
    rows = []
    for check, row in files.read_json(path)["summary"].items():
        now = row["now"]
        shown = f"{now:.1e}".replace("e-0", "e-") if 0 < now < 0.001 else number(now)
        rows.append((check, row["unit"], row["before"], shown))
    found = markdown(("check", "number", "before", "now"), rows, num_text=2)
    return f"{found}\n\n(Record: [{path.name}](../benchmarks/records/{path.name}).)"


def choices() -> str:
    """The table on the head of fine-tuning and the start of linear layers; empty without a record."""
    path = records.newest(FOLDER, "as-published")
    if path is None:
        return ""
    record = files.read_json(path)
    config, rows = record["config"], []
    for labels, ways in record["summary"].items():
        for way, row in ways.items():
            against = row.get("as published minus this")
            gain = "{mean:+.2f} ({low:+.2f} to {high:+.2f})".format(**against) if against else ""
            rows.append((labels, way, f"{row['mean']:.2f} ± {row['deviation']:.2f}", gain))
    header = ("labels", "way", "top-1, %", "as published minus this, 95 %")
    return (
        f"\n\nWhether two of the choices matter: Fashion-MNIST, {config['seeds']} seeds, {config['steps']} steps of "
        f"pre-training, {config['finetune_steps']} of fine-tuning, 128 images each.\n\n"
        f"{markdown(header, rows, num_text=2)}\n\n(Record: [{path.name}](../benchmarks/records/{path.name}).)"
    )


def updated(document: str) -> str:
    """README's or docs/as-published.md's text with the current table."""
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    current = parity() + choices() if document.startswith("# As published") else table()
    return f"{before}{BEGIN}\n{current}\n{END}{after}"


if __name__ == "__main__":
    for path in (ROOT / "README.md", ROOT / "docs/as-published.md"):
        path.write_text(updated(path.read_text()))
