"""MuseV's task YAML as manifest rows: references resolved, sweeps multiplied, templates filled.

Keys that ask for something this version cannot do become a :class:`BadCell` under their own name,
so the row is refused by that name; attributes that only templates read go to ``extra``.
"""

from __future__ import annotations

import difflib
import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from musev.errors import ManifestError, RequestError
from musev.negative_prompts import NEGATIVE_PROMPTS
from pipelines.checks import parse_cell, shorten
from pipelines.prompt_templates import fill_prompt
from pipelines.rows import MANIFEST_COLUMNS, WHOLE_ROW, BadCell, canonical_json

Task = dict[str, Any]

# Upstream's key -> our column. Our own column names are understood too.
_RENAMED = {
    "name": "request_id",
    "condition_images": "condition_image",
    "refer_image": "reference_image",
    "ipadapter_image": "ip_adapter_image",
    "video_path": "video",
    "video_is_middle": "video_is_control",
}
_CONSUMED = {
    "template_name",
    "origin_prompt",
    "negative_prompt",
    "video_negative_prompt",
    "redraw_condition_image",
    "condition_images_index",
}
_TASK_KEYS = {*_RENAMED, *MANIFEST_COLUMNS, *_CONSUMED}


def read_tasks(text: str, where: str) -> list[dict[str, Any]]:
    """Read MuseV's task YAML into raw manifest rows.

    Args:
        text: The YAML.
        where: Its file name, for messages.

    Returns:
        One row for each task after sweeps; a task that cannot be read is one bad row. A file that
        is no YAML list is a ManifestError.
    """
    rows: list[dict[str, Any]] = []
    for index, task in enumerate(load_tasks(text, where)):
        if isinstance(task, BadCell):
            rows.append({WHOLE_ROW: task})
            continue
        rows.extend(_task_rows(task, index))
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


def _task_rows(task: Task, index: int) -> list[dict[str, Any]]:
    rows = []
    for swept in expand_sweeps(task):
        try:
            filled = fill_templates(swept)
        except RequestError as problem:
            filled = [{**swept, "prompt": BadCell(str(problem))}]
        rows.extend(_to_row(one, index) for one in filled)
    if len(rows) > 1:
        totals = Counter(row["request_id"] for row in rows)
        places: Counter[Any] = Counter()
        for row in rows:
            name = row["request_id"]
            places[name] += 1
            if totals[name] > 1:
                row["request_id"] = f"{name}-{places[name]}"
    return rows


def _to_row(task: Task, index: int) -> dict[str, Any]:
    row: dict[str, Any] = {"request_id": str(index)}
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
    row["request_id"] = str(row["request_id"])
    row.setdefault("img_length_ratio", 1.0)  # upstream floors every size, also without a ratio
    row |= _negative_prompt(task) | _refused(task)
    if extra:
        row.setdefault("extra", canonical_json(extra))
    return row


def _to_value(column: str, value: Any) -> Any:
    if isinstance(value, list) and MANIFEST_COLUMNS[column].is_media:
        if len(value) == 1:
            return value[0]
        return BadCell(f"one image a row is supported, got {len(value)}. Keep one of them.")
    return parse_cell(MANIFEST_COLUMNS[column], value) if isinstance(value, str) else value


def _misspelt(key: str, task: Mapping[str, Any]) -> str | None:
    if f"{{{key}}}" in str(task.get("origin_prompt", "")):
        return None
    near = difflib.get_close_matches(str(key), _TASK_KEYS, n=1, cutoff=0.8)
    return near[0] if near else None


def _negative_prompt(task: Task) -> dict[str, Any]:
    # The video call reads video_negative_prompt; negative_prompt is for making a first frame.
    given = task.get("video_negative_prompt")
    if given is None:
        given = task.get("negative_prompt")
    if given is None:
        return {}
    return {
        "negative_prompt": NEGATIVE_PROMPTS.get(given, given) if isinstance(given, str) else given
    }


def _refused(task: Task) -> dict[str, BadCell]:
    refused = {}
    if task.get("redraw_condition_image") not in (None, False):
        refused["redraw_condition_image"] = BadCell(
            "redrawing the condition image is not supported yet. Set it to false, or take it out."
        )
    index = task.get("condition_images_index")
    if index not in (None, [0]):
        refused["condition_images_index"] = BadCell(
            f"the condition image can only be frame 0, got {shorten(index)}. Take the key out."
        )
    return refused
