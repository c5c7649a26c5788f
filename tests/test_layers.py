"""Who may import whom. The arrows of the house, kept by reading the imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "wtool"
ROOTS = [
    ["text"],
    ["errors"],
    ["dtypes", "keys", "report", "bytesource", "sizes", "journal"],
    ["boxes", "lfs"],
    ["tensor"],
    ["values", "quantized"],
    ["checkpoint", "plan", "views", "sparse"],
    ["adapter", "layout", "stage", "workers"],
    ["slots"],
    ["write"],
    ["api"],
    ["verify", "between"],
]
LEVEL = {name: level for level, names in enumerate(ROOTS) for name in names}
UP_TO_ADAPTER = {name for name, level in LEVEL.items() if level <= LEVEL["adapter"]}
FAMILIES = {
    "formats": UP_TO_ADAPTER | {"kernels"},
    "kernels": {"dtypes", "errors"},
    "ops": {
        "errors",
        "bytesource",
        "dtypes",
        "keys",
        "report",
        "tensor",
        "values",
        "views",
        "sparse",
        "checkpoint",
        "layout",
        "quantized",
        "kernels",
        "maps",
    },
    "analysis": {
        "errors",
        "dtypes",
        "keys",
        "report",
        "sizes",
        "tensor",
        "values",
        "views",
        "sparse",
        "checkpoint",
        "layout",
        "quantized",
        "kernels",
    },
    "layouts": {
        "errors",
        "boxes",
        "text",
        "bytesource",
        "dtypes",
        "keys",
        "tensor",
        "values",
        "quantized",
        "views",
        "layout",
        "kernels",
    },
    "render": {"report"},
    "maps": {"errors", "text", "bytesource", "dtypes", "keys", "report", "tensor", "values", "views", "checkpoint", "kernels"},
}
# A member may lean on another of its family where one format is made of another, or where a tool is shared by siblings.
SHARED = {
    "formats": {
        "pickles",
        "pickling",
        "pickle_names",
        "pickle_parts",
        "pickle_objects",
        "pickle_opcodes",
        "zips",
        "inflate",
        "protobuf",
    }
    | {"snappy", "sstable", "safetensors_header", "gguf_header", "gguf_values", "shards", "strangers"},
    "kernels": {"buffers", "tables", "halves", "signs", "moments", "cast", "difference", "combine", "agree", "rounding"}
    | {"trim", "masks", "energy", "squares", "halfmean", "affine", "packing", "clip", "groups", "biased", "lanes"}
    | {"e8m0", "e2m1", "within"}
    | {"ggml", "ggml_grids", "ggml_search", "ggml_k", "ggml_iq", "ggml_encode_k"},
    "ops": {"select", "rename", "cast", "linear", "map", "policy", "wrappers", "ties", "coo", "packed", "spared", "leave"},
    "layouts": {"reading", "codecs", "floats", "compressed_found", "experts", "columns", "telling", "grains", "plain_found"},
    "analysis": {
        "parallel",
        "plain",
        "tree",
        "looks",
        "digest",
        "stats",
        "align",
        "compare",
        "diff",
        "diff_tables",
        "diff_heat",
        "diff_report",
        "beside",
        "changelog",
        "listing",
        "select",
        "search",
        "bracket",
        "ranked",
    },
    "render": {"text", "json", "markdown", "html", "heat"},
    "maps": {
        "step",
        "grammar",
        "places",
        "shapes",
        "arrangements",
        "values",
        "steps",
        "templates",
        "kinds",
        "recipe",
        "rules",
        "catalog",
        "modules",
        "flat",
        "match",
        "names",
        "kept",
    }
    | {"like", "resolve", "table"}
    | {"signatures", "likeness", "align", "fused", "guesses", "questions", "writing"},
}
ALLOWED_PAIRS = {("sharded", "safetensors"), ("sharded", "torch"), ("safetensors", "sharded")}
HEAVY = {"numpy", "torch", "tensorflow", "ml_dtypes", "safetensors", "rich", "typer"}

FILES = sorted(path for path in SRC.rglob("*.py"))


def imports(path: Path, *, top: bool = False) -> list[str]:
    """Modules that a file imports (only while it is being imported itself, with `top`), TYPE_CHECKING blocks left out."""
    found: list[str] = []

    def walk(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if isinstance(node, ast.Import):
                found.extend(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                found.append(node.module or "")
                found.extend(f"{node.module}.{alias.name}" for alias in node.names)
            elif top and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for field in ("body", "orelse", "finalbody"):
                walk(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                walk(handler.body)
            for case in getattr(node, "cases", []):
                walk(case.body)

    walk(ast.parse(path.read_text()).body)
    return found


def place(path: Path) -> tuple[str, ...]:
    return path.relative_to(SRC).with_suffix("").parts


def ours(names: list[str]) -> set[tuple[str, ...]]:
    known = {place(path) for path in FILES} | {place(path)[:-1] for path in FILES if path.stem == "__init__"}
    return {parts for name in names if name.startswith("wtool.") and (parts := tuple(name.split(".")[1:])) in known}


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(place(path)))
def test_arrows_point_down(path: Path) -> None:
    where = place(path)
    for target in ours(imports(path)):
        if len(where) == 1:
            if where[0] in ("__init__", "__main__"):
                continue
            late = where[0] in ("api", "verify", "between") and target[0] in ("formats", "analysis", "maps", "ops")
            assert late or LEVEL[target[0]] < LEVEL[where[0]] or target == where, f"{where} imports {target}"
        elif where[0] == "cli":
            assert target != ("cli", "app") or where[1] == "app", "a command imports the app"
        elif target[0] != where[0]:
            assert target[0] in FAMILIES[where[0]], f"{where} imports {target}"
        elif target[1:] and where[1] != target[1] and where[1] not in ("__init__", "registry"):
            pair = (where[1], target[1])
            assert target[1] in SHARED[where[0]] or pair in ALLOWED_PAIRS, f"{where} imports its sibling {target}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(place(path)))
def test_heavy_packages_stay_out_of_start_up(path: Path) -> None:
    where = place(path)
    roots = {name.split(".")[0] for name in imports(path, top=True)} & HEAVY
    if where[0] == "cli":
        roots -= {"typer"}
    if where[0] in ("kernels", "ops", "analysis", "layouts"):
        roots -= {"numpy"}
    assert not roots, f"{where} imports {roots} at its top"


def test_files_stay_readable() -> None:
    long = {str(path.relative_to(SRC)): count for path in FILES if (count := len(path.read_text().splitlines())) > 400}
    assert not long, "one subject each: cut these"
