"""The papers' comparisons at our scale: one row for each model of a finished run, and the table of these rows.

    bash run_all.sh papers/solo-drawn
    python -m benchmarks.papers show papers/solo-drawn
    python -m benchmarks.papers add papers/solo-drawn --note "two cores"
    python -m benchmarks.papers table papers/solo-drawn

`show` prints the table of the run that is at hand, and keeps nothing. `add` appends to docs/papers.jsonl, or another `--file`,
what scores.json and the trainings' provenance.json say of every single model, out of fold, and of their ensemble; a row that is
there already is not added twice. Its commit is the one that trained. `table` prints what was added. Both print Markdown. Runs
of a model that differ in the seed alone are one line, which has their mean and, in brackets, the least and the greatest value; so
are models that are called the same but for a number at the end (``attention-0``, ``attention-1``).
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.experiment import NOT_IN_THE_RESULT, PROJECT, Experiment, ExperimentError, Layout, load

DATA = PROJECT / "docs" / "papers.jsonl"

ENSEMBLE = "ensemble"

UNKNOWN = "?"
"""The commit of what was made without git, or before artifacts said theirs."""

SHOWN = {"iterations", "batch", *NOT_IN_THE_RESULT}
"""Settings of a training that have a column of their own, or need none."""

MEASURES = (
    "score", "AP", "AP50", "AP75", "APs", "APm", "APl", "true_positives_in_first_100", "best_iou", "miou", "pixel_accuracy", "pq",
    "class_accuracy", "digits_found", "digits", "assigned_class_accuracy", "dice",
)  # fmt: skip
"""Columns of the table where `--measure` names none, those that a run has."""


def rows_of(experiment: Experiment, layout: Layout, note: str = "", called: str = "") -> list[dict[str, Any]]:
    """A row for each model of a run and, of several models or views, one for their ensemble.

    Args:
        called: the experiment as the user calls it, for the message.

    Raises:
        ExperimentError: the run has no scores yet.
    """
    if not layout.scores.exists():
        elsewhere = "" if layout.root == PROJECT else f" --root {layout.root}"
        command = f"bash run_all.sh {called or experiment.name}{elsewhere}"
        raise ExperimentError(f"there is no {layout.scores}; make it with: {command}")
    scores = json.loads(layout.scores.read_text())
    common = {
        "experiment": experiment.name,
        "metric": scores["metric"],
        "images": scores["images"],
        "made": scores["provenance"]["made"],
        "note": note,
    }
    rows = []
    for name, standing in scores["models"].items():
        trainings = {
            fold: json.loads((layout.training(name, fold) / "provenance.json").read_text())
            for fold in map(str, experiment.validation_folds())
        }
        settings = experiment.train_settings(name)
        rows.append(
            {
                **common,
                "commit": ", ".join(dict.fromkeys(t.get("commit") or UNKNOWN for t in trainings.values())),
                "model": name,
                "config": experiment.models[name].config,
                "options": experiment.models[name].options,
                "seed": experiment.seed + experiment.models[name].seed,
                "folds": list(trainings),
                "trained_on": [t["images"] for t in trainings.values()],
                "iterations": settings.iterations,
                "batch": settings.batch,
                "train": settings.model_dump(mode="json", exclude_defaults=True, exclude=SHOWN),
                "data": experiment.data.options,
                "views": experiment.views(name, "oof"),
                "seconds": [t["seconds"] for t in trainings.values()],
                "measures": _numbers(standing),
            }
        )
    if len(rows) > 1 or any(len(experiment.views(name, "oof")) > 1 for name in experiment.models):
        ensemble = {
            "commit": scores["provenance"].get("commit") or UNKNOWN,
            "model": ENSEMBLE,
            "of": list(experiment.models),
            "seed": [row["seed"] for row in rows],
            "fusion": experiment.fusion.model_dump(exclude_unset=True),
        }
        rows.append({**common, **ensemble, "folds": rows[0]["folds"], "measures": _numbers(scores["ensemble"])})
    return rows


def _numbers(standing: Mapping[str, Any]) -> dict[str, float]:
    return {
        k: v if isinstance(v, int) else round(v, 5)
        for k, v in standing.items()
        if isinstance(v, int | float) and not isinstance(v, bool) and k not in ("images", "truths")
    }


def add(rows: Iterable[Mapping[str, Any]], path: Path = DATA) -> int:
    """Append the rows that are not there yet, and say how many those are."""
    known = {(row["experiment"], row["model"], row["made"]) for row in read(path)}
    new = [row for row in rows if (row["experiment"], row["model"], row["made"]) not in known]
    with path.open("a") as handle:
        for row in new:
            handle.write(json.dumps(row) + "\n")
    return len(new)


def read(path: Path = DATA) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: Sequence[Mapping[str, Any]], experiment: str, measures: Iterable[str] = MEASURES) -> str:
    """Markdown: a line for each model, the seeds of one together; of a model that was added twice with the same seed and
    settings, the later row. An ensemble's commit is the one that scored it.

    Raises:
        ExperimentError: there is nothing of the experiment, or of a measure.
    """
    latest = {_what(row): row for row in rows if row["experiment"] == experiment}
    if not latest:
        kept = ", ".join(sorted({row["experiment"] for row in rows})) or "none"
        raise ExperimentError(f"no row of {experiment!r} was added; there are rows of: {kept}")
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for (name, _, *settings), row in latest.items():  # but the seed
        groups.setdefault(json.dumps([re.sub(r"-\d+$", "", name), *settings]), []).append(row)
    shown = [m for m in measures if any(m in row["measures"] for row in latest.values())]
    absent = [m for m in measures if m not in shown and m not in MEASURES]
    if absent:
        known = sorted({m for row in latest.values() for m in row["measures"]})
        raise ExperimentError(f"no row has {', '.join(absent)}; there are {', '.join(known)}")
    lines = [
        "| model | commit | trainings (of images) | iterations x images | minutes | judged images | "
        + " | ".join(m.replace("_", " ") for m in shown)
        + " |",
        "|---" * (6 + len(shown)) + "|",
    ]
    for members in groups.values():
        seconds = [s for row in members for s in row.get("seconds", [])]
        cells = [
            _label(members[0]),
            ", ".join(dict.fromkeys(commit for row in members for commit in row["commit"].split(", "))),
            f"{len(seconds)} ({_span([n for row in members for n in row['trained_on']])})" if seconds else "",
            f"{members[0]['iterations']} x {members[0]['batch']}" if "iterations" in members[0] else "",
            f"{sum(seconds) / len(seconds) / 60:.1f}" if seconds else "",
            _span([row["images"] for row in members]),
            *(_cell([row["measures"][m] for row in members if m in row["measures"]]) for m in shown),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _what(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row is of: the model, its seed, and what of its settings was changed from run to run."""
    settings = ("options", "folds", "trained_on", "of", "fusion", "train", "data", "views")
    return (
        row["model"], json.dumps(row.get("seed")), row.get("iterations"), row.get("batch"),
        *(json.dumps(row.get(key)) for key in settings),
    )  # fmt: skip


def _span(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return str(least) if least == most else f"{least} to {most}"


def _label(row: Mapping[str, Any]) -> str:
    if "of" in row:
        fusion = row["fusion"]
        how = "as tuned" if fusion.get("tune", True) else fusion.get("method", "wbf")
        return f"{' + '.join(row['of'])}, {how}"
    settings = [f"{key}: {value}" for key, value in (row.get("options") or {}).items()]
    return ", ".join([re.sub(r"-\d+$", "", row["model"]), *settings])


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    form = "{:.0f}" if all(isinstance(v, int) for v in values) else "{:.3f}"
    mean = form.format(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))} to {form.format(max(values))})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("action", choices=("show", "add", "table"))
    parser.add_argument("experiment", help="papers/solo-drawn, say")
    parser.add_argument("--root", type=Path, default=PROJECT, help="holds artifacts/ (default: the project's folder)")
    parser.add_argument("--file", type=Path, default=DATA, help=f"where rows are kept (default: {DATA})")
    parser.add_argument("--model", action="append", help="only this model (may be repeated), as it was run or added")
    parser.add_argument("--note", default="", help="where it ran, what differs")
    parser.add_argument("--measure", action="append", help="a column of the table (may be repeated)")
    options = parser.parse_args()
    name = Path(options.experiment).stem
    try:
        if options.action == "table":
            rows = read(options.file)
            added = sorted({row["model"] for row in rows if row["experiment"] == name})
            for model in options.model or []:
                if added and model not in added:
                    raise ExperimentError(f"no row of {name} is of a model {model!r}; there are {', '.join(added)}")
            rows = [row for row in rows if not options.model or row["model"] in options.model]
            print(table(rows, name, options.measure or MEASURES))
            return
        layout = Layout(name, options.root.absolute())
        kept = layout.artifacts / "experiment.yaml"  # with what --set changed
        experiment = load(str(kept) if kept.exists() else options.experiment).only(options.model, None)
        rows = rows_of(experiment, layout, options.note, options.experiment)
        if options.action == "show":
            print(table(rows, name, options.measure or MEASURES))
            return
        print(f"{add(rows, options.file)} rows added to {options.file}")
    except ExperimentError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
