"""Allowed imports between parts of the package, and the longest allowed file."""

import sys
from configparser import ConfigParser
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from import_graph import Import, find_modules, read_imports
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/llm_asr"
MAX_LINES = 600
# Suffixes of code and text. Data and results of experiments may be longer.
SUFFIXES = {".py", ".sh", ".md", ".cfg", ".toml", ".yaml", ".yml", ".ipynb", ".Dockerfile"}
FOLDERS = ("src", "tests", "examples", "studies", "benchmarks", "docs", "docker", ".github", ".ci")

# The layers from top to bottom. A module may import from its own part and from parts in lower rows, but not from other parts in
# the same row.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"commands"},
    {"serving"},
    {"publishing"},
    {"training"},
    {"evaluation"},
    {"dataset_transcription"},
    {"live"},
    {"llm_asr"},
    {"registration"},
    {"datasets_asr", "keyword_lists", "subtitles"},
    {"modeling", "processing"},
    {"atomic_writing", "file_stamps", "memory"},
]
LEVELS = {part: level for level, parts in enumerate(LAYERS) for part in parts}

# Transformers calls a method of the model to upload it, and only the whole package can upload a model.
UPWARD = {Import("llm_asr.registration", "llm_asr.publishing.push", "call")}


def part_of(module: str) -> str:
    """The part of the package to which a module belongs. The package's own `__init__` is a part too."""
    return (module.split(".")[1:] or [module])[0]


def find_cycle(imports: list[Import]) -> list[str] | None:
    """A cycle of modules that import one another at import time. The last module is the first one again."""
    graph: dict[str, set[str]] = {}
    for one in imports:
        if one.when == "import" and one.importer != one.imported:
            graph.setdefault(one.importer, set()).add(one.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def find_arrows_upwards(imports: list[Import]) -> set[Import]:
    """Imports of a part that is not in a lower row. Imports of third-party packages do not count."""
    return {
        one
        for one in imports
        if one.imported.split(".")[0] == "llm_asr"
        and part_of(one.importer) != part_of(one.imported)
        and LEVELS[part_of(one.importer)] >= LEVELS[part_of(one.imported)]
    }


@pytest.fixture(scope="module")
def imports():
    return read_imports(PACKAGE)


def test_no_modules_import_one_another(imports):
    assert len(imports) > 500
    assert find_cycle(imports) is None


def test_every_part_has_a_layer():
    assert {part_of(module) for module in find_modules(PACKAGE)} == set(LEVELS)


def test_only_listed_imports_lead_to_a_higher_layer(imports):
    assert find_arrows_upwards(imports) == UPWARD


def test_code_that_ships_in_checkpoints_imports_no_other_code_of_the_package(imports):
    """A checkpoint has neither the other folder nor a shared base."""
    for folder in ("modeling", "processing"):
        own = [one for one in imports if part_of(one.importer) == folder and one.imported.startswith("llm_asr")]
        assert own
        assert [one for one in own if part_of(one.imported) != folder] == []


def test_files_that_ship_in_checkpoints_have_different_names():
    """They are in one folder there, where one of two files with a name would be lost."""
    names = [{file.name for file in (PACKAGE / folder).glob("*.py")} for folder in ("modeling", "processing")]
    assert names[0] & names[1] == {"__init__.py"}


def test_the_package_imports_only_its_declared_dependencies(imports):
    """So the package does not import examples or studies."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    asked_for = setup["options"]["install_requires"] + "".join(setup["options.extras_require"].values())
    requirements = [line for line in asked_for.splitlines() if line and not line.startswith("#")]
    declared = {canonicalize_name(Requirement(line).name) for line in requirements}
    installed = packages_distributions()
    top_levels = {one.imported.split(".")[0] for one in imports} - set(sys.stdlib_module_names) - {"llm_asr"}
    assert top_levels
    undeclared = {
        name for name in top_levels if not declared & {canonicalize_name(d) for d in installed.get(name, [name])}
    }
    # vLLM has a different build for each kind of hardware, so no extra requires it.
    assert undeclared == {"vllm"}


def test_no_file_is_too_long():
    files = [
        file
        for path in (*ROOT.glob("*"), *(ROOT / folder for folder in FOLDERS))
        for file in (path.rglob("*") if path.name in FOLDERS else [path])
        if file.is_file() and (file.suffix in SUFFIXES or file.name == "Makefile")
    ]
    assert len(files) > 250
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {str(file.relative_to(ROOT)): lines for file, lines in lengths.items() if lines > MAX_LINES} == {}


@pytest.fixture
def package(tmp_path):
    """Writes a package called `llm_asr` from the sources of its modules."""

    def make(sources):
        for name, source in sources.items():
            file = tmp_path / "llm_asr" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
        return read_imports(tmp_path / "llm_asr")

    return make


@pytest.mark.parametrize(
    ("back", "is_cycle"),
    [
        ("from .. import first", True),
        ("from ..first import thing", True),
        ("import llm_asr.first", True),
        ("class Thing:\n    from .. import first", True),
        ("try:\n    from ..first import thing\nexcept ImportError:\n    pass", True),
        ("if TYPE_CHECKING:\n    from ..first import thing", False),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    from ..first import thing", True),
        ("def thing():\n    from .. import first", False),
        ("from .third import first", False),
    ],
)
def test_import_cycles_are_detected(package, back, is_cycle):
    imports = package(
        {
            "__init__.py": "",
            "first.py": "from .folder import second",
            "folder/__init__.py": "",
            "folder/second.py": back,
            "folder/third.py": "first = 1",
        }
    )
    cycle = find_cycle(imports)
    assert (cycle is not None) == is_cycle
    if is_cycle:
        assert set(cycle) == {"llm_asr.first", "llm_asr.folder.second"}


@pytest.mark.parametrize(
    ("file", "source", "is_upwards"),
    [
        ("modeling/one.py", "from ..processing import audio", True),
        ("modeling/one.py", "def run():\n    from ..processing import audio", True),
        ("modeling/one.py", "from ..modeling import two", False),
        ("evaluation/one.py", "from ..training.trainer import x", True),
        ("evaluation/deep/one.py", "if TYPE_CHECKING:\n    from ...training import x", True),
        ("training/one.py", "from ..evaluation.metrics import x\nimport torch.training", False),
        ("memory.py", "from . import registration", True),
        ("memory.py", "from . import __version__", True),
    ],
)
def test_imports_of_a_higher_layer_are_detected(package, file, source, is_upwards):
    modules = ("processing/audio.py", "modeling/two.py", "training/trainer.py", "registration.py")
    imports = package({**dict.fromkeys(("__init__.py", *modules), ""), file: source})
    assert bool(find_arrows_upwards(imports)) == is_upwards
