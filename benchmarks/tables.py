"""Write the tables of README and of pages in docs from the newest records.

python benchmarks/tables.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fastmim.bench import records
from fastmim.bench.markdown import markdown, number
from fastmim.system import files

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks/records"
BEGIN, END = "<!-- figures: python benchmarks/tables.py -->", "<!-- end of figures -->"


class Row(NamedTuple):
    """A claim, the name of its record, and the keys of the number in the summary: a median with its range, or alone."""

    claim: str
    record: str
    keys: tuple[str, ...]
    convert: Callable[[float], float] = float


def data(claim: str, pipeline: str) -> Row:
    """A row on reading images."""
    return Row(claim, "bench-data", ("pipelines", pipeline, "times_faster"))


def step(name: str, case: str, precision: str, record: str = "bench-step") -> Row:
    """A row on a CPU's training step, against the plain form of the same precision."""
    claim = f"Training step on a CPU, {name}: times the images per second of the plain form, both {precision}"
    return Row(claim, record, ("cases", case, "forms", f"fastmim {precision}", "times_faster"))


def steps(name: str, case: str) -> tuple[Row, Row]:
    """The rows in both precisions."""
    return step(name, case, "bf16"), step(name, case, "float32")


def finetune(claim: str, case: str, form: str) -> Row:
    """A row on fine-tuning."""
    return Row(claim, "bench-finetune", ("cases", case, "forms", form, "times_faster"))


def gpu_step(name: str, case: str) -> Row:
    """A row on a GPU's training step, against the plain form, which published codes run in float16."""
    claim = f"Training step on a GPU, {name}: times the images per second of the plain form (bf16 and fp16)"
    return Row(claim, "gpu-step-cuda", (case, "times_faster"))


def gpu_hours(name: str, case: str) -> Row:
    """A row on the time of a training, of which the GPU's steps are measured."""
    claim = f"{name} at 128 px, 100,000 images for 200 epochs: hours of training steps on a GPU"
    keys = (case, "forms", "fastmim bf16 compiled", "images_per_s")
    return Row(claim, "gpu-step-cuda", keys, lambda images_per_s: 100_000 * 200 / images_per_s / 3600)


def gpu_method(method: str) -> Row:
    """A row on a method's cost against FastMIM's."""
    claim = f"{method} on a GPU: time of an image over FastMIM's at 128 px (ViT-B, both compiled)"
    return Row(claim, "gpu-methods-cuda", ("vit_base_patch16_224", "methods", method, "times_slower"))


def pretraining(what: str, start: str, key: str) -> Row:
    """A row on what pre-training adds with few labels."""
    claim = f"Fashion-MNIST, 600 labels: points of top-1 that HOG pre-training adds {what}"
    return Row(claim, "fashion-mnist-longer", ("600 labels", start, key))


VIT_S, VIT_B, SWIN_T, CONVNEXT_T = (
    f"{name}, 128 px, hog, in-place"
    for name in ("vit_small_patch16_224", "vit_base_patch16_224", "swin_tiny_patch4_window7_224", "convnext_tiny")
)

# README's, at most eight: those by which a user decides.
FIGURES: tuple[Row, ...] = (
    gpu_hours("ViT-B", "vit_base_patch16_224, in-place, batch 1024"),
    gpu_hours("Swin-B", "swin_base_patch4_window7_224, in-place, batch 256"),
    Row(
        "ViT-B at 128 px, 256 images at a time: GiB of GPU memory",
        "gpu-step-cuda",
        ("vit_base_patch16_224, in-place, batch 256", "forms", "fastmim bf16 compiled", "memory_mib"),
        lambda mib: mib / 1024,
    ),
    gpu_method("MAE 224"),
    gpu_step("ViT-B at 128 px, 1024 images", "vit_base_patch16_224, in-place, batch 1024"),
    Row("JPEG pack of photographs: kB an image", "jpeg-quality", ("quality 90", "kb_per_image")),
    data("Reading a JPEG pack: times less CPU time per image than a folder by Pillow + torchvision", "jpeg pack"),
    pretraining("to the same network, trained from scratch on as many images", "hog", "gain over as many images"),
)

MORE: tuple[Row, ...] = (
    pretraining("if both are fine-tuned for 400 steps", "hog", "gain"),
    pretraining("if both are fine-tuned for 4,400 steps", "hog, longer", "gain"),
    Row(
        "Fashion-MNIST, 6,000 labels: points of top-1 that HOG pre-training adds if both are fine-tuned for 400 steps",
        "fashion-mnist",
        ("6000 labels", "hog", "gain"),
    ),
    data("Reading a raw pack: times less CPU time per image than a folder by Pillow + torchvision", "raw pack"),
    data("Reading a folder of JPEGs: times less CPU time per image than Pillow + torchvision", "folder"),
    *(
        data(f"Reading a folder of {kind}: times less CPU time per image than Pillow + torchvision", f"folder, {key}")
        for kind, key in (
            ("JPEGs of 4000 x 3000 pixels", "4000 x 3000"),
            ("PNGs with the extra `png`", "PNG"),
            ("WebPs", "WebP"),
        )
    ),
    gpu_step("Swin-B at 128 px, 256 images", "swin_base_patch4_window7_224, in-place, batch 256"),
    gpu_step("ConvNeXt-B at 128 px, 256 images", "convnext_base, in-place, batch 256"),
    gpu_step("PVTv2-B2 at 128 px, 256 images", "pvt_v2_b2, in-place, batch 256"),
    *(
        step(f"{name}, 64 images", case, "bf16", record="bench-step-vit-base")
        for name, case in (
            ("ViT-B at 128 px", VIT_B),
            ("ViT-B at 128 px, dropped tokens", VIT_B.replace("in-place", "drop")),
            ("MAE's recipe on ViT-B at 224 px", "vit_base_patch16_224, MAE 224"),
            ("SimMIM's recipe on ViT-B at 192 px", "vit_base_patch16_224, SimMIM 192"),
        )
    ),
    *steps("ViT-S at 128 px", VIT_S),
    *steps("ViT-S at 128 px, dropped tokens", VIT_S.replace("in-place", "drop")),
    *steps("Swin-T at 128 px", SWIN_T),
    *steps("ConvNeXt-T at 128 px", CONVNEXT_T),
    *steps("MAE's recipe on ViT-S at 224 px", "vit_small_patch16_224, MAE 224"),
    *steps("SimMIM's recipe on Swin-T at 192 px", "swin_tiny_patch4_window7_224, SimMIM 192"),
    *(
        Row(
            f"Training step on a CPU, ViT-B at 128 px, {precision}: share of the rate of a large matrix product",
            "bench-step",
            ("cases", f"{VIT_B}, batch 64", "forms", f"fastmim {precision}", "share_of_peak"),
        )
        for precision in ("bf16", "float32")
    ),
    *(
        finetune(
            f"Fine-tuning ViT-S at 224 px on a CPU: times the images per second of the plain form, both {precision}",
            "vit_small_patch16_224, 224 px, step",
            f"fastmim {precision}",
        )
        for precision in ("bf16", "float32")
    ),
    finetune(
        "Decoding and augmenting for fine-tuning at 224 px: times less CPU time than by timm on Pillow",
        "224 px, augmentation",
        "fastmim",
    ),
    gpu_method("SimMIM 192"),
    gpu_method("SimMIM 224"),
    Row("HOG target: times less CPU time than its one-hot form", "bench-hog", ("forms", "fastmim", "times_faster")),
    Row("Training loop: CPU time of a step over a bare loop's", "loop-overhead", ("fastmim_over_bare",)),
    Row("The same on two processes (DDP)", "loop-overhead-ddp", ("fastmim_over_bare",)),
    Row(
        "Detection, a step of Swin-T at 256 px: CPU time over torchvision's own Mask R-CNN's",
        "detect-step",
        ("fastmim_over_torchvision",),
    ),
    Row("Fine-tuning loop: CPU time of a step over a bare loop's", "finetune-overhead", ("fastmim_over_bare",)),
    Row(
        "Feature extraction: the main process's CPU time over the bare forward pass's",
        "features",
        ("extract over bare forward, CPU of the main process",),
    ),
    Row("10^9 images: MB of a process above torch's own", "billion", ("mb_above_torch",)),
    Row("`fastmim --help`: seconds of CPU", "help", ("seconds",)),
    Row(
        "Linear probe, 45,000 features of 384 numbers, 100 classes, 24 heads: seconds of CPU",
        "linear-probe",
        ("seconds",),
    ),
    Row("`fastmim backbones 'swin*'`: seconds of CPU", "backbones", ("seconds",)),
)


def table(rows: tuple[Row, ...], folder: str) -> str:
    """The rows in Markdown, with links to the records in `folder`; a number that no record has gets no row."""
    cells = []
    for row in rows:
        path, value = found(row)
        if path is None:
            continue
        link = f"[{path.name}]({folder}/{path.name})"
        shown = {key: f"{row.convert(number):.2f}" for key, number in _spread(value).items()}
        spread = f"{shown['min']} to {shown['max']}" if "min" in shown else "-"
        cells.append((row.claim, shown["median"], spread, records.machine(files.read_json(path)), link))
    return markdown(("figure", "median", "range", "measured on", "record"), cells, num_text=5)


def found(row: Row) -> tuple[Path | None, Any]:
    """The newest record that has a row's number, and the number: a step is recorded in one precision, or in two."""
    for path in sorted(FOLDER.glob(f"{row.record}-[0-9]*.json"), reverse=True):
        value = files.read_json(path)["summary"]
        for key in row.keys:
            value = value.get(key, {})
        if value != {}:
            return path, value
    return None, None


def _spread(value: float | dict[str, float]) -> dict[str, float]:
    return value if isinstance(value, dict) else {"median": value}


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


def transfer() -> str:
    """The table of what pre-training gave segmentation and detection in small; empty without a record."""
    path = records.newest(FOLDER, "dense-transfer")
    if path is None:
        return ""
    record = files.read_json(path)
    config, rows = record["config"], []
    figures = {"val_miou": "mIoU", "val_box_ap": "box AP", "val_mask_ap": "mask AP"}
    for name, row in record["summary"].items():
        network, task, figure, way = name.split()
        if way != "pre-trained":
            continue
        scratch = record["summary"][name.replace(way, "scratch")]
        cells = [
            f"{each['mean']:.1f}" + (f" ± {each['deviation']:.1f}" if each["deviation"] else "")
            for each in (row, scratch)
        ]
        gain = _gain(row["gain"])
        what = f"{task}, {config['tasks'][task]['steps']} steps: {figures[figure]}"
        rows.append((f"small {network}", what, str(len(row["seeds"])), *cells, gain))
    header = ("network", "training", "seeds", "pre-trained", "from scratch", "gain, 95 %")
    made = markdown(header, rows, num_text=2)
    return f"{made}\n\n(In points; {records.machine(record)}; [{path.name}](../benchmarks/records/{path.name}).)"


def adaptation() -> str:
    """The table of what adapting a small public network gave, by settings; empty without a record."""
    path = records.newest(FOLDER, "adaptation")
    if path is None:
        return ""
    record, rows = files.read_json(path), []
    for name, row in record["summary"].items():
        gains = [_gain(row["gain"][probe]) for probe in ("linear", "knn")]
        said = ", ".join(f"{row['verdicts'].count(word)} {word}" for word in dict.fromkeys(row["verdicts"]))
        rows.append((name, f"{row['linear before']:.1f}", *gains, said))
    header = ("adapted to", "linear probe before, %", "points gained, 95 %", "points of kNN gained", "verdicts")
    made = markdown(header, rows, num_text=1)
    return f"{made}\n\n({records.machine(record)}; [{path.name}](../../benchmarks/records/{path.name}).)"


def gpu_steps() -> str:
    """The table of a compiled step on a GPU, by network and batch."""
    path = records.newest(FOLDER, "gpu-step-cuda")
    assert path is not None
    record, rows = files.read_json(path), []
    for name, case in record["summary"].items():
        backbone, masking, batch = name.split(", ")
        found = case["forms"][case["fastmim"]]
        cells = (f"{found['images_per_s']:,.0f}", f"{found['memory_mib'] / 1024:.1f}", f"{found['share_of_peak']:.0%}")
        rows.append((int(batch.split()[1]), (f"{backbone}, {masking}", *cells)))
    rows.sort(key=lambda row: (row[1][0], row[0]))
    header = ("network at 128 px", "batch", "images a second", "GiB", "share of the rate of a large matrix product")
    made = markdown(header, [(name, str(batch), *cells) for batch, (name, *cells) in rows], num_text=1)
    return f"{made}\n\n({records.machine(record)}; [{path.name}](../../benchmarks/records/{path.name}).)"


def _gain(ends: dict[str, float]) -> str:
    """A mean, and its interval if there are seeds enough for one."""
    return f"{ends['mean']:+.1f}" + (f" ({ends['low']:+.1f} to {ends['high']:+.1f})" if "low" in ends else "")


def performance() -> str:
    """All figures, and the operations by whose times forms are chosen."""
    return f"{table(FIGURES + MORE, '../benchmarks/records')}\n\n## Forms of an operation\n\n{operations()}"


CONTENTS = {
    "# Performance": performance,
    "# As published": lambda: parity() + choices(),
    "# Segmentation and detection": transfer,
    "# Adapt": adaptation,
    "# On a GPU": gpu_steps,
}
DOCUMENTS = (
    "README.md",
    *(f"docs/{name}.md" for name in ("performance", "as-published", "downstream", "guides/adapt", "guides/gpu")),
)


def updated(document: str) -> str:
    """A document's text with the current tables; README's unless its title says otherwise."""
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    readme = partial(table, FIGURES, "benchmarks/records")
    current = next((make for title, make in CONTENTS.items() if document.startswith(title)), readme)()
    return f"{before}{BEGIN}\n{current}\n{END}{after}"


if __name__ == "__main__":
    for name in DOCUMENTS:
        (ROOT / name).write_text(updated((ROOT / name).read_text()))
