"""Private names of other packages in this one: `docs/private_api.md` lists all of them, each with its reason."""

import ast
import importlib
import inspect
import re
from pathlib import Path

from import_graph import find_modules


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/llm_asr"
DOCUMENTATION = ROOT / "docs/private_api.md"
# Only vLLM can import them.
WITHOUT_VLLM = {"llm_asr.serving.vllm_engine", "llm_asr.serving.vllm_model"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def defined_names(trees: list[ast.Module]) -> set[str]:
    """Names of functions, classes, variables and attributes that the package defines by itself."""
    names = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


def used_names(trees: list[ast.Module]) -> set[str]:
    """Private names that are read or set, or imported from other packages."""
    names = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.update(alias.name for alias in node.names)
            names.update((node.module or "").split("."))
    return {name for name in names if is_private(name)}


def overridden_names(modules: list[str]) -> set[str]:
    """Private names of base classes of other packages that classes of the package define anew."""
    names = set()
    for module in map(importlib.import_module, modules):
        for _, found in inspect.getmembers(module, inspect.isclass):
            if found.__module__ != module.__name__:
                continue
            others = [base for base in found.__mro__[1:] if not base.__module__.startswith("llm_asr")]
            names.update(
                name for name in vars(found) if is_private(name) and any(name in vars(base) for base in others)
            )
    # Python's own bookkeeping of abstract classes, protocols and enumerations.
    return {name for name in names if not name.startswith(("_abc_", "_is_protocol", "_member", "_value", "_sunder"))}


def test_every_private_name_of_other_packages_is_listed_with_its_reason():
    files = find_modules(PACKAGE)
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files.values()]
    modules = [name for name in files if name not in WITHOUT_VLLM and not name.endswith("__main__")]
    found = (used_names(trees) - defined_names(trees)) | overridden_names(modules)
    rows = re.findall(
        r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", DOCUMENTATION.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert found
    assert {name for name, *_ in rows} == found
    assert all(len(reason) > 20 for *_, reason in rows)
