from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import codeversion

FILES = {
    "__init__.py": "",
    "stages/__init__.py": "",
    "stages/train.py": '''
"""Train."""
from pkg import backends
from pkg.helpers import shared as renamed
from pkg.records import Table

RATE = 3

def run(table: Table, name):
    from pkg.inside import lazily
    lazily()
    return backends.get(name).train(table.rows(), RATE) + renamed()
''',
    "stages/score.py": """
import pkg.helpers
from pkg import competitions
from pkg.records import Table

def run(table: Table):
    return competitions.get("x").score(pkg.helpers.shared(), table.columns(), table.read())
""",
    "helpers.py": '''
import math

LIMIT = 10

def shared():
    """Say something."""
    # a comment
    return inner(LIMIT)

def inner(x):
    return math.sqrt(x) + getattr(x, "dynamic", 0)

def lonely():
    return 0
''',
    "inside.py": "def lazily():\n    return 1\n\ndef not_called():\n    return 2\n",
    "records.py": """
from dataclasses import dataclass
from pydantic import BaseModel, field_validator

class Settings(BaseModel):
    width: int = 3

    @field_validator("width")
    @classmethod
    def check(cls, value):
        return value

    def area(self):
        return self.width ** 2

@dataclass
class Table:
    settings: Settings

    def __post_init__(self):
        self.ready = True

    def rows(self):
        return 1

    def columns(self):
        return self.helper()

    def helper(self):
        return 2

    def read(self):
        return 3

    def dynamic(self):
        return 4
""",
    "backends/__init__.py": """
import importlib

def get(name):
    return importlib.import_module(f"pkg.backends.{name}").BACKEND
""",
    "backends/mm.py": """
from outside import Hook
from pkg.backends import parts

class Watch(Hook):
    def after(self):
        return 1

class Backend:
    def train(self, rows, rate):
        return parts.registry, Watch()

    def predict(self):
        return only_predicts()

def only_predicts():
    return 1

BACKEND = Backend()
""",
    "backends/parts.py": """
registry = {}

def register(cls):
    registry[cls.__name__] = cls
    return cls

@register
class Special:
    def go(self):
        return 1

class Plain:
    def go(self):
        return 1
""",
    "competitions/__init__.py": "def get(name):\n    return name\n",
    "competitions/base.py": """
class Base:
    def validate(self):
        return self.read_back()

    def read_back(self):
        return 1
""",
    "competitions/nuclei.py": """
from pkg.competitions.base import Base

class Nuclei(Base):
    def read(self):
        return 1

    def score(self, *values):
        return self._count("template.txt")

    def _count(self, name):
        return 3

COMPETITION = Nuclei()
""",
    "competitions/template.txt": "a page",
}

TRAIN = ["pkg.stages.train:run", "pkg.backends.mm:BACKEND"]
SCORE = ["pkg.stages.score:run", "pkg.competitions.nuclei:COMPETITION"]
UNUSED = {"train": {"pkg.backends": ["predict"]}, "score": {"pkg.competitions": ["read", "validate", "read_back"]}}

Package = Callable[[str, str, str], set[str]]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "pkg"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def versions(package: Path) -> dict[str, str]:
    roots = {"train": TRAIN, "score": SCORE}
    return {stage: codeversion.version(roots[stage], UNUSED[stage], package) for stage in roots}


def changed_by(package: Path, file: str, old: str, new: str) -> set[str]:
    """The stages whose version an edit changes."""
    before = versions(package)
    path = package / file
    text = path.read_text()
    assert text.count(old) == 1, (file, old)
    path.write_text(text.replace(old, new))
    after = versions(package)
    path.write_text(text)
    assert versions(package) == before
    return {stage for stage in before if before[stage] != after[stage]}


@pytest.mark.parametrize(
    ("file", "old", "new", "stages"),
    [
        pytest.param("helpers.py", "inner(LIMIT)", "inner(LIMIT) + 1", {"train", "score"}, id="shared helper"),
        pytest.param("helpers.py", "math.sqrt(x)", "math.cbrt(x)", {"train", "score"}, id="helper of a helper"),
        pytest.param("helpers.py", "LIMIT = 10", "LIMIT = 11", {"train", "score"}, id="constant"),
        pytest.param("helpers.py", "import math", "import cmath as math", {"train", "score"}, id="another import"),
        pytest.param("helpers.py", "return 0", "return 5", set(), id="function that nobody calls"),
        pytest.param("helpers.py", "# a comment", "# another", set(), id="comment"),
        pytest.param("helpers.py", "Say something.", "Say more.", set(), id="docstring"),
        pytest.param("helpers.py", "return inner(LIMIT)", "return inner(\n    LIMIT)", set(), id="formatting"),
        pytest.param("stages/train.py", '"""Train."""', '"""Learn."""', set(), id="module docstring"),
        pytest.param("stages/train.py", "RATE = 3", "RATE = 4", {"train"}, id="constant of a stage"),
        pytest.param("inside.py", "return 1", "return 3", {"train"}, id="imported inside a function"),
        pytest.param("inside.py", "return 2", "return 3", set(), id="beside what is imported inside a function"),
        pytest.param("records.py", "return 1", "return 5", {"train"}, id="method that one stage calls"),
        pytest.param("records.py", "return 2", "return 5", {"score"}, id="method that a called method calls"),
        pytest.param("records.py", "return 4", "return 5", {"train", "score"}, id="getattr with a constant name"),
        pytest.param("records.py", "self.ready = True", "self.ready = False", {"train", "score"}, id="dunder method"),
        pytest.param("records.py", "settings: Settings", "settings: Settings = 1", {"train", "score"},
                     id="dataclass field"),
        pytest.param("records.py", "width: int = 3", "width: int = 4", set(), id="a setting acts by its value"),
        pytest.param("records.py", "return value", "return value + 1", set(), id="so does a validator"),
        pytest.param("backends/mm.py", "parts.registry", "len(parts.registry)", {"train"}, id="module chosen by name"),
        pytest.param("backends/mm.py", "(self):\n        return 1", "(self):\n        return 2", {"train"},
                     id="method that a framework calls"),
        pytest.param("backends/mm.py", "predicts():\n    return 1", "predicts():\n    return 2", set(),
                     id="method of the chosen module that the stage does not use"),
        pytest.param("backends/parts.py", "class Special:\n    def go(self):\n        return 1",
                     "class Special:\n    def went(self):\n        return 1", set(),
                     id="name of a registered class's method"),
        pytest.param("backends/parts.py", "@register\nclass Special:", "@register\nclass Special(dict):", {"train"},
                     id="registered by a decorator"),
        pytest.param("backends/parts.py", "class Plain:", "class Plain(dict):", set(), id="not registered"),
        pytest.param("backends/parts.py", "registry[cls.__name__] = cls", "registry[cls] = cls", {"train"},
                     id="decorator"),
        pytest.param("competitions/nuclei.py", "return 1", "return 2", set(), id="method marked as not used"),
        pytest.param("competitions/nuclei.py", "return 3", "return 4", {"score"}, id="own method of a used one"),
        pytest.param("competitions/template.txt", "a page", "another page", {"score"},
                     id="data file named in the code"),
    ],
)  # fmt: skip
def test_an_edit_changes_exactly_the_stages_that_use_it(
    package: Path, file: str, old: str, new: str, stages: set[str]
) -> None:
    assert changed_by(package, file, old, new) == stages


def test_an_unused_method_counts_again_where_its_own_class_calls_it(package: Path) -> None:
    unused = {"pkg.competitions": ["read_back", "read", "score"]}
    roots = ["pkg.stages.score:run", "pkg.competitions.nuclei:COMPETITION"]
    path = package / "stages" / "score.py"
    path.write_text(path.read_text().replace(".score(", ".validate("))
    assert "pkg.competitions.base:Base.read_back" in codeversion.reached(roots, unused, package)


def test_moving_a_function_to_another_file_is_no_change(package: Path) -> None:
    before = versions(package)
    helpers = (package / "helpers.py").read_text()
    start, end = helpers.index("def inner"), helpers.index("def lonely")
    (package / "moved.py").write_text("import math\n\n" + helpers[start:end])
    (package / "helpers.py").write_text("from pkg.moved import inner\n" + helpers[:start] + helpers[end:])
    assert versions(package) == before


def test_statements_at_the_top_of_a_module_count_once_it_is_imported(package: Path) -> None:
    before = versions(package)
    path = package / "backends" / "parts.py"
    path.write_text(path.read_text() + "\nregistry.update(extra=1)\n")
    after = versions(package)
    assert after["train"] != before["train"]
    assert after["score"] == before["score"]


def test_relative_and_conditional_imports_are_followed(package: Path) -> None:
    (package / "stages" / "score.py").write_text(
        "try:\n    from ..inside import lazily as go\nexcept ImportError:\n    go = None\n\n"
        "def run():\n    return go()\n"
    )
    assert "pkg.inside:lazily" in codeversion.reached(["pkg.stages.score:run"], package=package)


def test_an_import_in_a_circle_ends(package: Path) -> None:
    (package / "a.py").write_text("from pkg.b import thing\n\ndef run():\n    return thing\n")
    (package / "b.py").write_text("from pkg.a import thing\n")
    assert codeversion.reached(["pkg.a:run"], package=package) >= {"pkg.a:run"}


@pytest.mark.parametrize("root", ["pkg.stages.nothing:run", "pkg.stages.train:walk", "other.module:run"])
def test_a_root_that_does_not_exist_is_an_error(package: Path, root: str) -> None:
    with pytest.raises(ValueError, match=root):
        codeversion.version([root], package=package)


def test_a_text_alone() -> None:
    text = "x = dict(a=1)  # one\nimport os\n"
    assert codeversion.text_hash(text) == codeversion.text_hash('"""Doc."""\nx = dict(\n    a=1,\n)\nimport os\n')
    assert codeversion.text_hash(text) != codeversion.text_hash("x = dict(a=2)\nimport os\n")
    assert codeversion.text_hash(text) != codeversion.text_hash("x = dict(a=1)\nimport sys\n")


def test_every_file_of_the_package_is_parsed_once() -> None:
    """An edit is looked for before every run, over all stages: what one root has read no other reads again."""
    codeversion._parse.cache_clear()
    codeversion.version(["pipeline.stages.train:run", "pipeline.backends.mmdet:BACKEND"])
    parsed = codeversion._parse.cache_info().misses
    assert 10 < parsed <= len(list(codeversion.PACKAGE.rglob("*.py")))
    codeversion.version(["pipeline.stages.train:run"])
    assert codeversion._parse.cache_info().misses == parsed
