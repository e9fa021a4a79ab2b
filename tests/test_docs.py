"""The documents agree with the code: commands run, figures match the records, names exist, modules are small."""

from __future__ import annotations

import ast
import fnmatch
import graphlib
import importlib
import importlib.metadata
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grimp
import pytest
import torch
import yaml

import fastmim
import tuning
from fastmim import cli
from fastmim.cli.commands import app
from fastmim.published import RECIPES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src/fastmim"
README = (ROOT / "README.md").read_text()
DOCUMENTS = README + "".join(
    path.read_text() for folder in ("docs", "docs/guides") for path in sorted((ROOT / folder).glob("*.md"))
)
COMMANDS = [
    line.split("#")[0].strip()
    for line in dict.fromkeys(DOCUMENTS.splitlines())
    if re.match(r" {4,}fastmim ", line) and " ... " not in line
]
STAND_INS = ("photos/", "packed/", "imagenet/train", "'shards/{000..127}.tar'")
NEEDED = re.compile(r"--init|--teacher|examples/")  # of an earlier command; tests of their own try these flags


def pretrainings() -> list[str]:
    """The commands that differ by more than where their images are and where they write."""
    same = re.compile(rf"--data ({'|'.join(map(re.escape, STAND_INS))})|--out \S+|--dry-run")
    commands = [c for c in COMMANDS if c.startswith("fastmim pretrain") and not NEEDED.search(c)]
    return list({" ".join(same.sub("", command).split()): command for command in commands}.values())


@pytest.mark.parametrize("command", pretrainings())
def test_pretraining_commands_run(command: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runs as a dry run on test images, which resolves settings, data, model and plan."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("data: samples\n")
    stand_ins = dict.fromkeys((word.strip("'") for word in STAND_INS), str(photos))
    stand_ins["auto"] = "4"  # a micro-batch of `auto` needs CUDA
    words = [stand_ins.get(word, word) for word in shlex.split(command)[1:]]
    with pytest.raises(SystemExit) as exit_:
        cli.main([*words, "--batch-size", "8", "--device", "cpu", *([] if "--dry-run" in words else ["--dry-run"])])
    assert exit_.value.code == 0


def test_every_command_has_the_flags_that_are_written() -> None:
    assert len(COMMANDS) > 50
    for command in COMMANDS:
        app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)  # or CycloptsError


def test_every_command_is_documented() -> None:
    used = {shlex.split(command)[1] for command in COMMANDS}
    assert {name for name in app if not name.startswith("-")} == used


def test_python_in_documents_runs(
    photos: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(photos)
    (tmp_path / "photo.jpg").symlink_to(photos / "00.jpg")
    fastmim.export(tuning.finetune(tmp_path / "tuned", labelled, steps=1).out, to="timm", out=tmp_path / "classifier")
    blocks = list(dict.fromkeys(re.findall(r"```python\n(.*?)```", DOCUMENTS, flags=re.DOTALL)))
    small = r'out="\1", steps=1, batch_size=2, device="cpu", trackers="none", picture_every="never"'
    names: dict[str, object] = {"images": torch.randn(2, 3, 128, 128), "torch": torch, "__name__": "__main__"}
    blocks = [block for block in blocks if "Pyramid" not in block]  # tests/transfer/segment runs that one
    for block in sorted(blocks, key=lambda block: "fastmim.pretrain(" not in block):  # train before loading
        exec(re.sub(r'out="(runs/(photos|pictures))"', small, block), names)
    assert isinstance(names["backbone"], torch.nn.Module)


def test_readme_says_what_the_claims_page_holds() -> None:
    """And it fits two screens."""
    claims = (ROOT / "docs/claims.md").read_text().split("\n## ")[1:7]
    verdicts = [set(re.findall(r"\| \*\*(.*?)\*\* \|", claim)) for claim in claims]
    found = [verdicts.count({verdict}) for verdict in ("undecided", "did not hold")]
    said = re.search(r"six claims, tested by small studies, (\w+) are undecided and (\w+) did not hold", README)
    assert (
        said and [["none", "one", "two", "three", "four", "five", "six"].index(word) for word in said.groups()] == found
    )
    assert "did not hold" in claims[1] and "HOG bears low\nresolution better" in README
    assert len(README.splitlines()) <= 110


def test_links_between_documents_lead_to_files() -> None:
    """`make docs` checks the places in the pages of the site too."""
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert len(documents) > 25
    for document in documents:
        for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)", document.read_text()):
            assert re.match(r"https?:", link) or (document.parent / link).exists(), f"{document.name}: {link}"


def test_figures_match_the_records() -> None:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks/tables.py")
    assert spec and spec.loader
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for name in tables.DOCUMENTS:
        document = (ROOT / name).read_text()
        assert tables.updated(document) == document
    assert len(tables.FIGURES) <= 8


def _message(node: ast.AST) -> str:
    """The text of a string in the code, with a line break for each value that is put in; empty for other nodes."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(part.value if isinstance(part, ast.Constant) else "\n" for part in parts)
    return ""


def test_the_messages_in_troubleshooting_are_those_of_the_code() -> None:
    """But for numbers, names and what the page leaves out with `...`."""
    page = (ROOT / "docs/guides/troubleshooting.md").read_text()
    messages = [line[4:] for line in page.splitlines() if line.startswith("    ")]
    assert len(messages) >= 15
    texts = {_message(node) for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))}
    for message in messages:
        pieces = re.split(r"\.\.\.|\(CUDA.*\.\.\.\)|\d[\d.,]*%?|\S*/\S*|timm:\w+", message)
        words = [piece.strip(" ,;:()%") for piece in pieces if len(piece.split()) > 1]
        assert words and any(all(piece in text for piece in words) for text in texts), message


def test_as_published_names_recipes_that_exist() -> None:
    recipes = (ROOT / "docs/as-published.md").read_text().partition("## Recipes")[2]
    first_cells = [row.split("|")[1] for row in recipes.splitlines() if row.startswith("| `")]
    named = [name for cell in first_cells for name in re.findall(r"`([a-z0-9*-]+)`", cell)]
    assert "simmim-vit-b" in named and all(fnmatch.filter(RECIPES, name) for name in named)


def test_public_names() -> None:
    for name in fastmim.__all__:
        assert getattr(fastmim, name).__doc__
    assert set(fastmim.__all__) == set(dir(fastmim))
    listed = re.findall(r"auto\w+:: fastmim\.(\w+)$", (ROOT / "docs/api.md").read_text(), flags=re.MULTILINE)
    assert {*listed, "__version__"} == set(fastmim.__all__)
    assert fastmim.__version__ == importlib.metadata.version("fastmim")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fastmim.nothing  # noqa: B018


def test_paths_in_contributing_exist() -> None:
    """Paths are relative to the repository or, for modules, to the package."""
    words = re.findall(r"`([^`\s]+(?:/|\.py))`", (ROOT / "CONTRIBUTING.md").read_text())
    assert not [word for word in words if not ((ROOT / word).exists() or (PACKAGE / word).exists())]


def test_contributing_lists_the_layers() -> None:
    [contract] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [room for layer in contract["layers"] for room in layer.split(" | ")]
    [listed] = re.findall(r"`src/fastmim/`: (.*?)\.", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)
    assert re.findall(r"`(\w+)`", listed) == layers


def test_citation_has_the_version_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def test_module_sizes() -> None:
    """Files are short enough to read in one sitting."""
    sizes = sorted(len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py"))
    assert sizes[len(sizes) // 2] < 150 and sizes[-1] <= 400


def test_function_sizes() -> None:
    """Only `fit` in training/loop.py, the training loop itself, may exceed 60 lines."""
    assert set(_functions_over(60)) <= {"training/loop.py: fit"}


def _functions_over(num_lines: int) -> Iterator[str]:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno
                if node.end_lineno - node.lineno >= num_lines:
                    yield f"{path.relative_to(PACKAGE).as_posix()}: {node.name}"


def test_no_import_circles() -> None:
    """The layers keep rooms apart; this also holds within a room."""
    graph = grimp.build_graph("fastmim", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(imports).prepare()  # CycleError names the modules of a circle


ARCHITECTURE = ROOT / "docs/architecture.md"
BEGIN, END = "<!-- modules: python tests/test_docs.py -->", "<!-- end of modules -->"


def module_list() -> str:
    """A heading for each package and a line for each module: the first sentence of its docstring."""
    lines: list[str] = []
    folders = [PACKAGE, *sorted(path.parent for path in PACKAGE.rglob("*/__init__.py"))]
    for folder in folders:
        sentence = _sentence(folder / "__init__.py")
        name = ".".join(folder.relative_to(PACKAGE.parent).parts)
        lines += ["", f"### `{name}`", "", sentence, ""]
        modules = sorted(path for path in folder.glob("*.py") if path.stem != "__init__")
        lines += [f"- `{path.stem}`: {_sentence(path)}" for path in modules]
    return "\n".join(lines).rstrip() + "\n"


def _sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, path
    return " ".join(docstring.split("\n\n")[0].split())


def updated(text: str) -> str:
    """The architecture page with the present list of modules."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{module_list()}\n{END}{rest.split(END)[1]}"


def test_architecture_lists_every_module() -> None:
    assert updated(ARCHITECTURE.read_text()) == ARCHITECTURE.read_text()


def test_the_walk_in_architecture_names_what_exists() -> None:
    """Each dotted name, such as `training.run.launch`, can be imported."""
    walk = ARCHITECTURE.read_text().split(BEGIN)[0]
    names = re.findall(
        r"`((?:backbone|cli|data|method|pretraining|training|transfer|weights)\.(?!safetensors)[\w.]+)`", walk
    )
    assert len(names) >= 15
    for name in names:
        found: Any = fastmim
        for part in name.split("."):
            found = getattr(found, part, None) or importlib.import_module(f"{found.__name__}.{part}")


if __name__ == "__main__":
    ARCHITECTURE.write_text(updated(ARCHITECTURE.read_text()))
