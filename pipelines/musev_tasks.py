"""MuseV's task files as manifest rows: references resolved, sweeps multiplied, templates filled.

Keys that ask for something this version cannot do become a :class:`BadCell` under their own name,
so the row is refused by that name; attributes that only templates read go to ``extra``.
"""

from __future__ import annotations

import csv
import difflib
import io
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import fsspec
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from musev.errors import ManifestError, RequestError
from musev.negative_prompts import NEGATIVE_PROMPTS
from pipelines.checks import parse_cell
from pipelines.prompt_templates import fill_prompt
from pipelines.rows import MANIFEST_COLUMNS, WHOLE_ROW, BadCell, canonical_json

Task = dict[str, Any]
Adapt = Callable[[Task], Task | None]
"""Changes a filled task; None leaves it out."""

# Upstream's key -> our column. Our own column names are understood too.
_RENAMED = {
    "name": "request_id",
    "condition_images": "condition_image",
    "refer_image": "reference_image",
    "ipadapter_image": "ip_adapter_image",
    "video_path": "video",
    "video_is_middle": "video_is_control",
    "redraw_condition_image": "redraw",
    "condition_images_index": "condition_index",
}
_CONSUMED = {
    "template_name",
    "origin_prompt",
    "negative_prompt",
    "video_negative_prompt",
}
_TASK_KEYS = {*_RENAMED, *MANIFEST_COLUMNS, *_CONSUMED}


IMAGE_SUFFIXES = ("jpg", "png", "jpeg", "webp")
_VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm")


def is_image_name(name: str) -> bool:
    """Whether the original takes a path for an image; here a file's content decides."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def read_tasks(text: str, where: str) -> list[dict[str, Any]]:
    """Read MuseV's task YAML into raw manifest rows.

    Args:
        text: The YAML.
        where: Its file name, for messages.

    Returns:
        One row for each task after sweeps; a task that cannot be read is one bad row. A file that
        is no YAML list is a ManifestError.
    """
    return task_rows(load_tasks(text, where))


def load_task_file(uri: str) -> list[Task | BadCell]:
    """Read a task file, YAML or CSV.

    Args:
        uri: Path or URL; a name that ends in ``.csv`` is a table with a key a column.

    Returns:
        The tasks as they are written, references resolved; empty cells of a table are left out.

    Raises:
        ManifestError: If the file cannot be read.
    """
    try:
        fs, path = fsspec.core.url_to_fs(uri)
        text = fs.cat_file(path).decode("utf-8-sig")
    except (OSError, ValueError, ImportError) as problem:
        raise ManifestError(f"cannot read the task file {uri}: {problem}") from None
    if not uri.lower().endswith(".csv"):
        return load_tasks(text, uri)
    try:
        table = list(csv.DictReader(io.StringIO(text), strict=True))
    except csv.Error as problem:
        raise ManifestError(f"{uri}: not a readable CSV file ({problem}).") from None
    tasks: list[Task | BadCell] = []
    for number, row in enumerate(table, start=1):
        if None in row:
            tasks.append(BadCell(f"{uri}: task {number} has more cells than the header. Quote it."))
            continue
        tasks.append({key: value for key, value in row.items() if value})
    return tasks


def task_names(tasks: Sequence[Task | BadCell]) -> list[str]:
    """Names of tasks; one without a name is called by its place, an unreadable one has none."""
    return [
        _name_of(task, index) for index, task in enumerate(tasks) if not isinstance(task, BadCell)
    ]


def _name_of(task: Task, index: int) -> str:
    name = task.get("name")
    return str(index if name is None else name)


def task_rows(
    tasks: Sequence[Task | BadCell],
    *,
    keep: Collection[str] | None = None,
    adapt: Adapt = dict,
    negatives: Mapping[str, str] = NEGATIVE_PROMPTS,
) -> list[dict[str, Any]]:
    """Make raw manifest rows of tasks.

    Args:
        tasks: From :func:`load_tasks` or :func:`load_task_file`.
        keep: Names of the tasks that are wanted; None for all, unreadable ones included.
        adapt: Changes every task after its sweeps and templates.
        negatives: Table of negative prompts; a text that is no name of it is taken literally.

    Returns:
        One row for each task after sweeps; a task that cannot be read is one bad row.
    """
    rows: list[dict[str, Any]] = []
    for index, task in enumerate(tasks):
        if isinstance(task, BadCell):
            if keep is None:
                rows.append({WHOLE_ROW: task})
        elif keep is None or _name_of(task, index) in keep:
            named = {**task, "name": _name_of(task, index)}
            rows.extend(_task_rows(named, adapt, negatives))
    return _told_apart(rows)


def _told_apart(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tasks may share a name in the original; here later ones get the next free number."""
    taken: set[str] = set()
    for row in rows:
        name = row.get("request_id")
        if not isinstance(name, str):
            continue
        numbers = itertools.count(2)
        while row["request_id"] in taken:
            row["request_id"] = f"{name}-{next(numbers)}"
        taken.add(row["request_id"])
    return rows


def load_tasks(text: str, where: str) -> list[Task | BadCell]:
    """Parse task YAML and resolve its ``${...}`` references.

    Args:
        text: The YAML.
        where: Its file name, for messages.

    Returns:
        The tasks; a task with a broken reference as a :class:`BadCell`.

    Raises:
        ManifestError: If the file is no YAML list.
    """
    try:
        config = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as problem:
        reason = " ".join(str(problem).split())
        raise ManifestError(f"{where}: not a readable YAML file ({reason}).") from None
    if not OmegaConf.is_list(config):
        raise ManifestError(
            f"{where}: task YAML must be a list of tasks ('- name: ...'), got "
            f"{type(OmegaConf.to_container(config)).__name__}."
        )
    tasks: list[Task | BadCell] = []
    for index, node in enumerate(config._iter_ex(resolve=False)):
        place = f"{where}: task {index + 1}"
        if not OmegaConf.is_dict(node):
            tasks.append(
                BadCell(f"{place} is not a map of keys. Write 'name: ...' below the dash.")
            )
            continue
        try:
            tasks.append(OmegaConf.to_container(node, resolve=True))
        except OmegaConfBaseException as problem:
            tasks.append(
                BadCell(f"{place}: a ${{...}} reference is broken ({_first_line(problem)}).")
            )
    return tasks


def _first_line(problem: BaseException) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]


def expand_sweeps(task: Task) -> list[Task]:
    """Multiply a task by its sweeps: every text value that holds ``|`` is a list of choices.

    Args:
        task: The resolved task.

    Returns:
        The cartesian product, in key order, the last key varying fastest.

    Source:
        Upstream ``fiss_tasks``; ALGORITHM.md section 3.
    """
    choices = [value.split("|") if _swept(value) else [value] for value in task.values()]
    return [dict(zip(task, values, strict=True)) for values in itertools.product(*choices)]


def _swept(value: Any) -> bool:
    return isinstance(value, str) and "|" in value


def fill_templates(task: Task) -> list[Task]:
    """Fill a task's prompt template; the prompt as written is kept as ``origin_prompt``.

    Args:
        task: One task after its sweeps.

    Returns:
        One task for each prompt. A template that cannot be filled is a RequestError.
    """
    written = task.get("prompt")
    if not isinstance(written, str):
        return [dict(task)]
    name = str(task.get("name", ""))
    prompts = fill_prompt(written, task, preset=task.get("template_name"), name=name)
    return [{**task, "prompt": prompt, "origin_prompt": written} for prompt in prompts]


def _task_rows(task: Task, adapt: Adapt, negatives: Mapping[str, str]) -> list[dict[str, Any]]:
    filled: list[Task] = []
    for swept in expand_sweeps(task):
        try:
            filled += fill_templates(swept)
        except RequestError as problem:
            filled.append({**swept, "prompt": BadCell(str(problem))})
    names = _numbered([str(one["name"]) for one in filled])
    adapted = [(name, adapt(one)) for name, one in zip(names, filled, strict=True)]
    return [_to_row({**one, "name": name}, negatives) for name, one in adapted if one is not None]


def _numbered(names: Sequence[str]) -> list[str]:
    """Give rows that share a name a number each: ``dance-1``, ``dance-2``."""
    totals, places = Counter(names), Counter[str]()
    found = []
    for name in names:
        places[name] += 1
        found.append(f"{name}-{places[name]}" if totals[name] > 1 else name)
    return found


def _to_row(task: Task, negatives: Mapping[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in task.items():
        column = _RENAMED.get(key, key)
        if key in _CONSUMED:
            continue
        if column in MANIFEST_COLUMNS:
            if value is not None:
                row[column] = _to_value(column, value)
        else:
            if near := _misspelt(key, task):
                row[key] = BadCell(f"unknown key {key!r}. Did you mean {near!r}?")
            extra[key] = value
    row.setdefault("img_length_ratio", 1.0)  # upstream floors every size, also without a ratio
    row |= _negative_prompt(task, negatives)
    if extra:
        row.setdefault("extra", canonical_json(extra))
    return row


def _to_value(column: str, value: Any) -> Any:
    if column == "condition_image" and isinstance(value, str):
        if not is_image_name(value) and value.lower().endswith(_VIDEO_SUFFIXES):
            return BadCell(f"{value} is a video, not an image. Give it as video_path.")
    return parse_cell(MANIFEST_COLUMNS[column], value) if isinstance(value, str) else value


def _misspelt(key: str, task: Mapping[str, Any]) -> str | None:
    if f"{{{key}}}" in str(task.get("origin_prompt", "")):
        return None
    near = difflib.get_close_matches(str(key), _TASK_KEYS, n=1, cutoff=0.8)
    return near[0] if near else None


def _negative_prompt(task: Task, negatives: Mapping[str, str]) -> dict[str, Any]:
    """The video's is ``video_negative_prompt``; the other key is that of a first frame."""
    first, video = task.get("negative_prompt"), task.get("video_negative_prompt")
    found = {"negative_prompt": first if video is None else video}
    if None not in (first, video):
        found["first_frame_negative_prompt"] = first
    return {
        column: negatives.get(given, given) if isinstance(given, str) else given
        for column, given in found.items()
        if given is not None
    }
