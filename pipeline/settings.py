"""The reference of an experiment's settings: names, kinds, bounds, defaults and meanings, read off their definition.

The options of every competition stand with them. docs/settings.md is `reference()` in full; ``python -m pipeline settings
[PART]`` prints it or a part.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline import competitions
from pipeline.experiment import Experiment, ExperimentError, groups_in, nearest

OPTIONS_OF = "data.options of "
"""How the name of a competition's group begins."""

HEAD = """# Settings of an experiment

Written by `.venv/bin/python -m pipeline settings > docs/settings.md`. An experiment is a YAML file of these, in
`configs/experiments` or anywhere; `--set train.iterations=300` of `run_all.sh` changes one for a run. The least that one holds:

```yaml
competition: coco
data: {path: my-data}
models:
  mine: {framework: mmdet, config: mmdet/mask-rcnn_r50}
```
"""


@dataclass(frozen=True)
class Setting:
    """One key of an experiment: its dotted `name`, what it may be, its default as YAML (None: it must be given) and what it
    means."""

    name: str
    kind: str
    default: str | None
    about: str


@dataclass(frozen=True)
class Group:
    """The settings of one class: the dotted name of where they stand ("" for the file itself), and the class's text."""

    name: str
    about: str
    settings: list[Setting]


def groups(settings: type[BaseModel] = Experiment, name: str = "") -> Iterator[Group]:
    """Every group of settings, from the outside in."""
    inner: list[tuple[type[BaseModel], str]] = []
    rows = []
    for key, field in settings.model_fields.items():
        if name == "" and key == "name":
            continue  # the file's own
        where = f"{name}.{key}" if name else key
        found = groups_in(field.annotation)
        for cls, suffix in found:
            inner.append((cls, where + suffix))
        if found and not field.description:
            continue  # a group speaks for itself
        rows.append(Setting(where, _kind(field), _default(field), _text(field.description or "")))
    yield Group(name, _text(settings.__doc__ or ""), rows)
    for cls, where in inner:
        yield from groups(cls, where)


def competition_groups() -> Iterator[Group]:
    """The options of each competition, below ``data.options``."""
    for name in competitions.names():
        options = competitions.get(name).options
        (group,) = groups(options, "data.options")
        yield Group(OPTIONS_OF + name, group.about if group.settings else "It has none.", group.settings)


def reference(part: str | None = None) -> str:
    """The reference in Markdown.

    Args:
        part: a group or setting by its dotted name, a competition, or a part of names, e.g. ``train``, ``digits`` or
            ``learning_rate``; None for all.

    Raises:
        ExperimentError: nothing is called so; the nearest is named.
    """
    every = [*groups(), *competition_groups()]
    if part is None:
        return HEAD + "".join("\n" + _section(group) for group in every)
    whole = [group for group in every if part in (group.name, group.name.removeprefix(OPTIONS_OF))]
    if not whole:
        hits = [Group(g.name, g.about, [s for s in g.settings if part in s.name]) for g in every]
        whole = [group for group in hits if group.settings]
    if not whole:
        names = [g.name.removeprefix(OPTIONS_OF) for g in every if g.name] + [s.name for g in every for s in g.settings]
        hint = nearest(part, names + [name.rsplit(".", 1)[-1] for name in names])
        raise ExperimentError(
            f"there is no setting {part!r}{hint}; the groups are {', '.join(g.name for g in every if g.name)}"
        )
    return "\n".join(_section(group) for group in whole)


def _section(group: Group) -> str:
    title = f"## {group.name}" if group.name else "## The file"
    lines = [title, "", *([group.about, ""] if group.about else [])]
    if not group.settings:
        return "\n".join(lines[:-1]) + "\n"
    lines += ["| setting | | default | |", "|---|---|---|---|"]
    for s in group.settings:
        default = "**must be given**" if s.default is None else f"`{s.default}`"
        cells = (f"`{s.name}`", s.kind, default, s.about)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- reading the definition ------------------------------


def _kind(field: FieldInfo) -> str:
    kind = _type(field.annotation)
    least = [f"{sign} {bound}" for sign, bound in _bounds(field)]
    return f"{kind}, {' and '.join(least)}" if least else kind


def _bounds(field: FieldInfo) -> Iterator[tuple[str, Any]]:
    for item in field.metadata:
        for cls, sign, value in ((Ge, "≥", "ge"), (Gt, ">", "gt"), (Le, "≤", "le"), (Lt, "<", "lt")):
            if isinstance(item, cls):
                yield sign, getattr(item, value)
        if isinstance(item, MinLen):
            yield "length ≥", item.min_length


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{_as_yaml(value)}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(inner) for inner in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is tuple:
        return f"{len(arguments)} of {_type(arguments[0])}"
    if origin is dict:
        return "mapping" if arguments[1] is Any else f"mapping to {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "group"
    return {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}[annotation]


def _default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    return "{}" if isinstance(value, BaseModel) else _as_yaml(value)


def _as_yaml(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _text(docstring: str) -> str:
    """One paragraph, with Markdown's single back-ticks."""
    return re.sub(r"``(.+?)``", r"`\1`", " ".join(docstring.split()))
