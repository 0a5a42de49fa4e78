"""The version of the code that a stage depends on: a hash of just the definitions it can reach.

From the stage's entry the definitions are followed by name, through the package and through imports inside functions
too. A function, a constant and each method of a class count separately, so an edit changes the version of the stages
that use the edited lines and of no other. Comments, docstrings and formatting do not count, nor does the file a
function lives in.

What cannot be seen in the text is assumed to be used: a method counts once its class is reached and its name is
accessed on anything at all; every method counts where the class derives from a class outside the package (frameworks
call those); a module's own statements and its registrations by decorator count once anything of the module is reached.

Settings (pydantic models) are the exception the other way: their fields, defaults and validators act through the values
they give, and those values are part of what a stage depends on by themselves.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from pipeline.experiment import PROJECT

PACKAGE = PROJECT / "pipeline"

_MODULE = "<module>"
"""The pseudo-definition that holds the statements a module runs when it is imported."""

_HOOKS = "<hooks>"
"""The pseudo-method that holds a class's methods which Python itself or a decorator calls."""

_QUIET_BASES = {
    "object", "ABC", "BaseModel", "Enum", "Generic", "IntEnum", "NamedTuple", "Protocol", "StrEnum", "TypedDict",
}  # fmt: skip
"""Base classes outside the package that call none of their children's methods by a name of the children's choice."""

_QUIET_DECORATORS = {
    "abstractmethod", "cache", "cached_property", "classmethod", "contextmanager", "dataclass", "final", "guvectorize",
    "inference_mode", "jit", "lru_cache", "njit", "no_grad", "overload", "override", "property", "runtime_checkable",
    "setter", "staticmethod", "total_ordering", "vectorize", "wraps",
}  # fmt: skip
"""Decorators that register nothing: what they decorate counts only where it is used."""


@dataclass(frozen=True)
class _Target:
    """What an imported name stands for: a module (`attribute` is None) or something in it."""

    module: str
    attribute: str | None


@dataclass
class _Facts:
    """What the text of one definition says."""

    digest: str = ""
    chains: set[tuple[str, ...]] = field(default_factory=set)
    """Names with the attributes read from them: ``a.b.c`` is ("a", "b", "c")."""
    attributes: set[str] = field(default_factory=set)
    own: set[str] = field(default_factory=set)
    """The attributes that are read from ``self`` or ``cls``."""
    strings: set[str] = field(default_factory=set)
    """Short texts: one that names a file beside the module stands for that file."""
    imports: dict[str, _Target] = field(default_factory=dict)


@dataclass
class _Class:
    bases: list[tuple[str, ...]]
    methods: set[str]


@dataclass
class _Module:
    name: str
    folder: Path
    package: str
    facts: dict[str, _Facts] = field(default_factory=dict)
    """By definition: ``function``, ``CONSTANT``, ``Class`` (bases, fields), ``Class.method``, ``<module>``, …"""
    classes: dict[str, _Class] = field(default_factory=dict)
    imports: dict[str, _Target] = field(default_factory=dict)
    registered: set[str] = field(default_factory=set)
    """Definitions under a decorator that may make them known elsewhere."""


def version(roots: Iterable[str], unused: Mapping[str, Iterable[str]] | None = None, package: Path = PACKAGE) -> str:
    """A hash of every definition that `roots` can reach.

    Args:
        roots: ``package.module:definition`` (or ``package.module``: all that its statements use). Modules that the code
            picks by a name in the settings cannot be seen in its text and have to be given here.
        unused: module prefix → methods that this stage does not call there, though it may read an attribute of that
            name elsewhere (``read``, ``write``, …). Such a method counts only where its own class calls it.
        package: the folder of the package.

    Raises:
        ValueError: a root that does not exist.
        SyntaxError: a file of the package is not Python.
    """
    return _Walk(package, {k: set(v) for k, v in (unused or {}).items()}).run(roots)


def reached(
    roots: Iterable[str], unused: Mapping[str, Iterable[str]] | None = None, package: Path = PACKAGE
) -> set[str]:
    """The definitions behind `version`, as ``package.module:definition``."""
    walk = _Walk(package, {k: set(v) for k, v in (unused or {}).items()})
    walk.run(roots)
    return {f"{module}:{name}" for module, name in walk.seen}


class _Walk:
    def __init__(self, package: Path, unused: dict[str, set[str]]) -> None:
        self.package, self.unused = package, unused
        self.modules: dict[str, _Module | None] = {}
        self.seen: set[tuple[str, str]] = set()
        self.todo: list[tuple[str, str]] = []
        self.attributes: set[str] = set()
        self.own: set[tuple[str, str]] = set()  # module, attribute read from self there
        self.waiting: list[tuple[str, str, str]] = []  # module, class, method: reached once the method's name is used
        self.objects: set[str] = set()  # modules used as values: whatever is read from anything may be read from them
        self.files: set[Path] = set()
        self.external: set[str] = (
            set()
        )  # names from outside the package: another import of the same name is another code

    def run(self, roots: Iterable[str]) -> str:
        for root in roots:
            name, _, definition = root.partition(":")
            module = self.module(name)
            if module is None or (definition and not self.reach(name, definition)):
                raise ValueError(f"there is no {root} in {self.package}")
            if not definition:
                self.add(name, _MODULE)
        while self.todo or self._dispatch():
            while self.todo:
                self._follow(*self.todo.pop())
        parts = sorted({self._facts(*node).digest for node in self.seen if not self._is_settings(*node)})
        parts += sorted(self.external)
        parts += sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in self.files)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def module(self, name: str) -> _Module | None:
        if name not in self.modules:
            self.modules[name] = self._find(name)
        return self.modules[name]

    def _find(self, name: str) -> _Module | None:
        top, *rest = name.split(".")
        if top != self.package.name:
            return None
        place = self.package.joinpath(*rest)
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path != self.package.with_suffix(".py") and path.is_file():
                return _read(path, name)
        return None

    def _facts(self, module: str, definition: str) -> _Facts:
        found = self.module(module)
        assert found is not None
        return found.facts[definition]

    def _is_settings(self, name: str, definition: str) -> bool:
        module = self.module(name)
        return (
            module is not None
            and definition in module.classes
            and "BaseModel" in self._foreign_bases(module, definition)
        )

    def add(self, module: str, definition: str) -> None:
        if (module, definition) not in self.seen:
            self.seen.add((module, definition))
            self.todo.append((module, definition))

    def reach(self, name: str, attribute: str, depth: int = 0) -> bool:
        """Follow an attribute of a module to the definition, submodule or import that it is."""
        module = self.module(name)
        if module is None or depth > 20:
            return False
        if attribute in module.facts:
            self.add(name, attribute)
            return True
        if attribute in module.imports:
            target = module.imports[attribute]
            self.add(name, _MODULE)
            if target.attribute is None:
                return self._use_module(target.module)
            return self.reach(target.module, target.attribute, depth + 1)
        return self._use_module(f"{name}.{attribute}")

    def _use_module(self, name: str) -> bool:
        if self.module(name) is None:
            return False
        self.add(name, _MODULE)
        return True

    def _follow(self, name: str, definition: str) -> None:
        module = self.module(name)
        assert module is not None
        facts = module.facts[definition]
        self.attributes |= facts.attributes
        self.own |= {(name, attribute) for attribute in facts.own}
        if definition == _MODULE:
            self._import_module(module)
        else:
            self.add(name, _MODULE)
        imports = {**module.imports, **facts.imports}
        self._use_imports(facts.imports)
        for chain in facts.chains:
            self._resolve(module, imports, chain)
        if definition in module.classes:
            self._open_class(module, definition)
        for text in facts.strings:
            path = module.folder / text
            if path.suffix not in ("", ".py") and path.is_file():
                self.files.add(path)

    def _import_module(self, module: _Module) -> None:
        parent = module.name.rpartition(".")[0]
        if parent:
            self._use_module(parent)
        self._use_imports(module.imports)
        for definition in module.registered:
            self.add(module.name, definition)

    def _use_imports(self, imports: Mapping[str, _Target]) -> None:
        for target in imports.values():
            self._use_module(target.module)
            if target.attribute is not None:
                self._use_module(f"{target.module}.{target.attribute}")

    def _resolve(self, module: _Module, imports: dict[str, _Target], chain: tuple[str, ...]) -> None:
        first, *rest = chain
        if first in module.facts:
            self.add(module.name, first)
        if first in imports:
            target = imports[first]
            if not _inside(target.module, self.package.name):
                self.external.add(f"{first} is {target.module} {target.attribute or ''}")
            self._resolve_path(target.module, [*([target.attribute] if target.attribute else []), *rest])

    def _resolve_path(self, name: str, rest: list[str], depth: int = 0) -> None:
        """Walk name.a.b.c as far as modules go; what comes next is a definition."""
        if self.module(name) is None or depth > 20:
            return
        while rest:
            deeper = f"{name}.{rest[0]}"
            module = self.module(name)
            assert module is not None
            if rest[0] not in module.facts and rest[0] not in module.imports and self.module(deeper) is not None:
                name, rest = deeper, rest[1:]
                self._use_module(name)
                continue
            target = module.imports.get(rest[0])
            if target is not None and rest[0] not in module.facts:
                self._use_module(name)
                onward = [*([target.attribute] if target.attribute else []), *rest[1:]]
                self._resolve_path(target.module, onward, depth + 1)
                return
            self.reach(name, rest[0])
            return
        self._use_module(name)
        self.objects.add(name)

    def _open_class(self, module: _Module, name: str) -> None:
        described = module.classes[name]
        foreign = self._foreign_bases(module, name)
        if "BaseModel" not in foreign:
            self.add(module.name, f"{name}.{_HOOKS}")
        for method in described.methods:
            if all(base in _QUIET_BASES or base.endswith(("Error", "Exception")) for base in foreign):
                self.waiting.append((module.name, name, method))
            else:
                self.add(module.name, f"{name}.{method}")

    def _foreign_bases(self, module: _Module, name: str, depth: int = 0) -> set[str]:
        """The short names of the classes outside the package that a class derives from, near or far."""
        foreign = set()
        for base in module.classes[name].bases:
            home, found = self._home_of(module, base)
            if home is None or depth > 20:
                foreign.add(base[-1])
            else:
                foreign |= self._foreign_bases(home, found, depth + 1)
        return foreign

    def _home_of(self, module: _Module, chain: tuple[str, ...], depth: int = 0) -> tuple[_Module | None, str]:
        """The module that defines the class which `chain` names in `module`."""
        if chain[0] in module.classes:
            return module, chain[0]
        target = module.imports.get(chain[0])
        if target is None or depth > 20:
            return None, ""
        path = [*([target.attribute] if target.attribute else []), *chain[1:]]
        name = target.module
        while len(path) > 1 and self.module(f"{name}.{path[0]}") is not None:
            name, path = f"{name}.{path[0]}", path[1:]
        home = self.module(name)
        return self._home_of(home, tuple(path), depth + 1) if home is not None and path else (None, "")

    def _dispatch(self) -> bool:
        """Reach the methods, and what is in modules held as values, whose names have come up. True if any did."""
        waiting, self.waiting = self.waiting, []
        for module, name, method in waiting:
            if method in self.attributes and not self._is_unused(module, method):
                self.add(module, f"{name}.{method}")
            else:
                self.waiting.append((module, name, method))
        for name in list(self.objects):
            found = self.module(name)
            assert found is not None
            for definition in found.facts:
                if definition in self.attributes and not self._is_unused(name, definition):
                    self.add(name, definition)
        return bool(self.todo)

    def _is_unused(self, module: str, method: str) -> bool:
        for prefix, names in self.unused.items():
            if method in names and _inside(module, prefix):
                return not any(attribute == method and _inside(place, prefix) for place, attribute in self.own)
        return False


def _inside(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


# ---------------------------------------------------------------- reading one file ------------------------------------


def _read(path: Path, name: str) -> _Module:
    status = path.stat()
    return _parse(path, name, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=512)
def _parse(path: Path, name: str, modified: int, size: int) -> _Module:
    tree = ast.parse(path.read_bytes(), str(path))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    module = _Module(name, path.parent, package)
    effects: list[ast.stmt] = []
    for statement in tree.body:
        _read_statement(module, statement, effects)
    module.facts[_MODULE] = _facts(module, effects)
    return module


def _read_statement(module: _Module, statement: ast.stmt, effects: list[ast.stmt]) -> None:
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        module.imports.update(_imports(statement, module.package))
    elif isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
        _define(module, statement.name, [statement])
        if _registers(statement):
            module.registered.add(statement.name)
    elif isinstance(statement, ast.ClassDef):
        _read_class(module, statement)
    elif _is_text(statement):
        pass
    else:
        names = set(_bound(statement))
        for name in names:
            _define(module, name, [statement])
        for inner in ast.walk(statement):
            if isinstance(inner, (ast.Import, ast.ImportFrom)):
                module.imports.update(_imports(inner, module.package))
        plain = isinstance(statement, (ast.Assign, ast.AnnAssign)) and names
        if not plain and any(
            isinstance(s, (ast.Expr, ast.Assign, ast.AugAssign, ast.Delete)) for s in ast.walk(statement)
        ):
            effects.append(statement)


def _define(module: _Module, name: str, statements: list[ast.stmt]) -> None:
    known = module.facts.get(name)
    facts = _facts(module, statements)
    if known is not None:  # defined twice (overloads, try … except): all of it counts
        facts.digest = hashlib.sha256((known.digest + facts.digest).encode()).hexdigest()
        for kind in ("chains", "attributes", "own", "strings"):
            getattr(facts, kind).update(getattr(known, kind))
        facts.imports.update(known.imports)
    module.facts[name] = facts


def _read_class(module: _Module, node: ast.ClassDef) -> None:
    methods: set[str] = set()
    shell: list[ast.stmt] = []
    hooks: list[ast.stmt] = []
    for statement in node.body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if _registers(statement) or (statement.name.startswith("__") and statement.name.endswith("__")):
                hooks.append(statement)
            else:
                methods.add(statement.name)
                _define(module, f"{node.name}.{statement.name}", [statement])
        elif not _is_text(statement):
            shell.append(statement)
    bases = [chain for chain in map(_chain, node.bases) if chain]
    if len(bases) < len(node.bases):  # Generic[T], or a class that a call makes: look through the subscript
        bases += [chain for base in node.bases if isinstance(base, ast.Subscript) and (chain := _chain(base.value))]
    module.classes[node.name] = _Class(bases, methods)
    outline = ast.ClassDef(
        name=node.name, bases=node.bases, keywords=node.keywords, body=shell, decorator_list=node.decorator_list
    )
    _define(module, node.name, [outline])
    _define(module, f"{node.name}.{_HOOKS}", hooks)
    if _registers(node):
        module.registered.add(node.name)


def _registers(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    for decorator in node.decorator_list:
        chain = _chain(decorator.func if isinstance(decorator, ast.Call) else decorator)
        if not chain or chain[-1] not in _QUIET_DECORATORS:
            return True
    return False


def _chain(node: ast.AST) -> tuple[str, ...]:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return (node.id, *reversed(names)) if isinstance(node, ast.Name) else ()


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _bound(statement: ast.stmt) -> Iterator[str]:
    """The names that a top-level statement, simple or compound, binds."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name


def _imports(node: ast.Import | ast.ImportFrom, package: str) -> dict[str, _Target]:
    if isinstance(node, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: _Target(
                alias.name if alias.asname else alias.name.partition(".")[0], None
            )
            for alias in node.names
        }
    source = node.module or ""
    if node.level:
        parents = package.split(".")
        base = ".".join(parents[: len(parents) - node.level + 1])
        source = f"{base}.{source}" if source else base
    return {alias.asname or alias.name: _Target(source, alias.name) for alias in node.names}


def _facts(module: _Module, statements: list[ast.stmt]) -> _Facts:
    facts = _Facts()
    text: list[str] = []
    for statement in statements:
        _visit(statement, facts, text, module.package)
    facts.digest = hashlib.sha256("".join(text).encode()).hexdigest()
    return facts


def _visit(node: ast.AST, facts: _Facts, text: list[str], package: str) -> None:
    """Write `node` down without positions, docstrings and empty fields, and note what it refers to."""
    kind = type(node)
    if kind is ast.Name:
        facts.chains.add((node.id,))  # type: ignore[attr-defined]
        text.append(f"N{node.id}")  # type: ignore[attr-defined]
        return
    if kind is ast.Attribute:
        facts.attributes.add(node.attr)  # type: ignore[attr-defined]
        chain = _chain(node)
        if chain:
            if chain[0] in ("self", "cls"):
                facts.own.add(chain[1])
            else:
                facts.chains.add(chain)
            inner: ast.AST = node
            while isinstance(inner, ast.Attribute):
                facts.attributes.add(inner.attr)
                inner = inner.value
            text.append("A" + ".".join(chain))
            return
    elif kind is ast.Constant:
        value = node.value  # type: ignore[attr-defined]
        if type(value) is str and len(value) < 200:
            facts.strings.add(value)
        text.append(f"C{value!r}")
        return
    elif kind in (ast.Import, ast.ImportFrom):
        facts.imports.update(_imports(node, package))  # type: ignore[arg-type]
        text.append("import")
        return
    elif kind is ast.Call:
        called = _chain(node.func)  # type: ignore[attr-defined]
        if called and called[-1] in ("attrgetter", "getattr", "hasattr", "methodcaller"):
            texts = [a.value for a in node.args if isinstance(a, ast.Constant)]  # type: ignore[attr-defined]
            facts.attributes |= {text for text in texts if isinstance(text, str)}
    text.append(f"({kind.__name__}")
    for name in node._fields:
        value = getattr(node, name, None)
        if value is None or name in ("type_comment", "ctx"):
            continue
        if isinstance(value, list):
            items = [v for v in value if not (isinstance(v, ast.stmt) and _is_text(v))]
            if items:
                text.append(f" {name}=[")
                for item in items:
                    if isinstance(item, ast.AST):
                        _visit(item, facts, text, package)
                    else:
                        text.append(repr(item))
                    text.append(",")
                text.append("]")
        elif isinstance(value, ast.AST):
            text.append(f" {name}=")
            _visit(value, facts, text, package)
        else:
            text.append(f" {name}={value!r}")
    text.append(")")


def text_hash(source: str) -> str:
    """A hash of a Python text that stands alone, e.g. a config: comments, docstrings and formatting do not count.

    Raises:
        SyntaxError: it is not Python.
    """
    text: list[str] = []
    facts = _Facts()
    for statement in ast.parse(source).body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            text.append(ast.dump(statement))
        elif not _is_text(statement):
            _visit(statement, facts, text, "")
    return hashlib.sha256("".join(text).encode()).hexdigest()
