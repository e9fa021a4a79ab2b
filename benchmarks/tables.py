"""Write the tables of README, docs/performance.md and docs/as-published.md from the newest records.

python benchmarks/tables.py
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fastmim.bench import records
from fastmim.bench.markdown import markdown, number
from fastmim.system import files

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks/records"
BEGIN, END = "<!-- figures: python benchmarks/tables.py -->", "<!-- end of figures -->"

Row = tuple[str, str, tuple[str, ...]]
"""The claim, the name of the record, and the keys of its median in the summary."""


def data(claim: str, pipeline: str) -> Row:
    """A row on reading images."""
    return claim, "bench-data", ("pipelines", pipeline, "times_faster")


def step(name: str, case: str, precision: str) -> Row:
    """A row on a CPU's training step, against the plain form of the same precision."""
    claim = f"Training step on a CPU, {name}: times the images per second of the plain form, both {precision}"
    return claim, "bench-step", ("cases", case, "forms", f"fastmim {precision}", "times_faster")


def gpu_step(name: str, case: str) -> Row:
    """A row on a GPU's training step, against the plain form, which published codes run in float16."""
    claim = f"Training step on a GPU, {name}: times the images per second of the plain form (bf16 and fp16)"
    return claim, "gpu-step-cuda", (case, "times_faster")


def gpu_method(method: str) -> Row:
    """A row on a method's cost against FastMIM's."""
    claim = f"{method} on a GPU: time of an image over FastMIM's at 128 px (ViT-B, both compiled)"
    return claim, "gpu-methods-cuda", ("vit_base_patch16_224", "methods", method, "times_slower")


VIT_S, SWIN_T, CONVNEXT_T = (
    f"{name}, 128 px, hog, in-place"
    for name in ("vit_small_patch16_224", "swin_tiny_patch4_window7_224", "convnext_tiny")
)

# README's, at most eight: those by which a user decides.
FIGURES: tuple[Row, ...] = (
    gpu_step("ViT-B at 128 px, 1024 images", "vit_base_patch16_224, in-place, batch 1024"),
    gpu_step("Swin-B at 128 px, 256 images", "swin_base_patch4_window7_224, in-place, batch 256"),
    gpu_method("MAE 224"),
    data("Folder of JPEGs: times less CPU time per image than Pillow + torchvision", "folder"),
    data("Its JPEG pack: likewise", "jpeg pack"),
    data("Its raw pack: likewise", "raw pack"),
    (
        "Fashion-MNIST, 600 labels: points of top-1 that HOG pre-training adds to the same network from scratch",
        "fashion-mnist",
        ("600 labels", "hog", "gain"),
    ),
)

MORE: tuple[Row, ...] = (
    gpu_step("ConvNeXt-B at 128 px, 256 images", "convnext_base, in-place, batch 256"),
    gpu_step("PVTv2-B2 at 128 px, 256 images", "pvt_v2_b2, in-place, batch 256"),
    step("ViT-S at 128 px", VIT_S, "float32"),
    step("Swin-T at 128 px", SWIN_T, "float32"),
    step("ConvNeXt-T at 128 px", CONVNEXT_T, "float32"),
    gpu_method("SimMIM 192"),
    gpu_method("SimMIM 224"),
    (
        "MAE 224 on a CPU: time of an image over FastMIM's at 128 px (ViT-S)",
        "bench-methods",
        ("methods", "MAE 224", "times_slower"),
    ),
    ("SimMIM 192 on a CPU: likewise", "bench-methods", ("methods", "SimMIM 192", "times_slower")),
    ("HOG target: times less CPU time than its one-hot form", "bench-hog", ("forms", "fastmim", "times_faster")),
    ("Training loop: CPU time of a step over a bare loop's", "loop-overhead", ("fastmim_over_bare",)),
    ("Fine-tuning loop: likewise", "finetune-overhead", ("fastmim_over_bare",)),
    (
        "Feature extraction: the main process's CPU time over the bare forward pass's",
        "features",
        ("extract over bare forward, CPU of the main process",),
    ),
    ("`fastmim --help`: seconds of CPU", "help", ("seconds",)),
    (
        "Linear probe, 45,000 features of 384 numbers, 100 classes, 24 heads: seconds of CPU",
        "linear-probe",
        ("seconds",),
    ),
    ("`fastmim backbones 'swin*'`: seconds of CPU", "backbones", ("seconds",)),
)


def table(rows: tuple[Row, ...], folder: str) -> str:
    """The rows in Markdown, with links to the records in `folder`; a benchmark without a record has no row."""
    cells = []
    for claim, name, keys in rows:
        path = records.newest(FOLDER, name)
        if path is None:
            continue
        record = files.read_json(path)
        value = record["summary"]
        for key in keys:
            value = value[key]
        link = f"[{path.name}]({folder}/{path.name})"
        spread = f"{value['min']:.2f} to {value['max']:.2f}"
        cells.append((claim, f"{value['median']:.2f}", spread, records.machine(record), link))
    return markdown(("figure", "median", "range", "measured on", "record"), cells, num_text=5)


def operations() -> str:
    """The table of the two forms of each operation, in Markdown."""
    path = records.newest(FOLDER, "operations")
    assert path is not None
    record = files.read_json(path)
    cells = []
    for kind, rows in record["summary"].items():
        for what, found in rows.items():
            faster = found["times_faster"]["median"]
            cells.append((f"{kind}: {what}", f"{1 / faster if found['chosen'] == 'fused' else faster:.2f}"))
    made = markdown(("operation", "times faster than the fused form or the convolution"), cells)
    words = (
        "Attention as two products and a softmax against the fused form, by queries and keys; patches as "
        "a matrix product against a convolution. Above 1 the former is faster. In training, fastmim takes it with a "
        "learned bias, and up to 784 x 784 in bf16 and 128 x 128 in float32; forward passes alone take the fused form."
    )
    return f"{words}\n\n{made}\n\n({records.machine(record)}; [{path.name}](../benchmarks/records/{path.name}).)"


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


def performance() -> str:
    """All figures, and the operations by whose times forms are chosen."""
    return f"{table(FIGURES + MORE, '../benchmarks/records')}\n\n## Forms of an operation\n\n{operations()}"


CONTENTS = {"# Performance": performance, "# As published": lambda: parity() + choices()}


def updated(document: str) -> str:
    """A document's text with the current tables; README's unless its title says otherwise."""
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    readme = partial(table, FIGURES, "benchmarks/records")
    current = next((make for title, make in CONTENTS.items() if document.startswith(title)), readme)()
    return f"{before}{BEGIN}\n{current}\n{END}{after}"


if __name__ == "__main__":
    for name in ("README.md", "docs/performance.md", "docs/as-published.md"):
        (ROOT / name).write_text(updated((ROOT / name).read_text()))
