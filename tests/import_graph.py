"""Reads the imports of a package's modules from their source."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """
    An `import` statement.

    Attributes:
        importer (`str`): Full name of the module with the statement.
        imported (`str`): Full name of the imported module, of this package or of another one.
        when (`str`): `"import"`, `"call"` inside a function, or `"typing"` below `if TYPE_CHECKING`.
    """

    importer: str
    imported: str
    when: str


def find_modules(package: Path) -> dict[str, Path]:
    """Files of a package's modules, by their full names."""
    modules = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return modules


def read_imports(package: Path) -> list[Import]:
    """All imports of a package's modules."""
    modules = find_modules(package)
    return [
        Import(name, imported, when)
        for name, file in modules.items()
        for node, when in _import_statements(ast.parse(file.read_text(encoding="utf-8")), "import")
        for imported in _imported_modules(node, name if file.stem == "__init__" else name.rpartition(".")[0], modules)
    ]


def _import_statements(node: ast.AST, when: str) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, when
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        when = "call"
    guarded = node.body if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") else []
    for child in ast.iter_child_nodes(node):
        yield from _import_statements(child, "typing" if child in guarded else when)


def _imported_modules(node: ast.Import | ast.ImportFrom, parent: str, modules: dict[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        ancestor = ".".join(parent.split(".")[: len(parent.split(".")) - node.level + 1])
        base = f"{ancestor}.{base}" if base else ancestor
    for alias in node.names:
        # A name may be a module or an object in `base`.
        yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base
