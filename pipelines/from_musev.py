"""A command line of the original as runs of ours: for every base model settings and manifest rows.

What a task may say itself becomes a column of its row, all else a setting of the run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from musev.config import ClipRequest, Profile
from musev.negative_prompts import NEGATIVE_PROMPTS, missing_tokens
from pipelines.model_tables import choose_names
from pipelines.musev_flags import OriginalCommand, ignored_flags
from pipelines.musev_tasks import Task, load_task_file, task_names, task_rows
from pipelines.original_weights import (
    OriginalWeights,
    Paths,
    check_name,
    control_names,
    keeps_habits,
)
from pipelines.output_names import (
    NameParts,
    short_hash,
    stem_of,
    text2video_name,
    video2video_name,
)
from pipelines.rows import BadCell

if TYPE_CHECKING:
    from musev.media import VideoInfo

VideoFacts = Callable[[str], "VideoInfo | None"]
"""Measures the video at a URI; None if it cannot be read."""

_LAYOUTS = {"uniform_v2": "upstream", "uniform": "upstream_uniform"}
_NOISES = {"video_fusion": "upstream_video_fusion", "random": "upstream_random"}

# Flags that are a setting as they stand.
_SETTINGS = {
    "guidance_scale": "sampling.first_frame.guidance.scale",
    "num_inference_steps": "sampling.first_frame.num_steps",
    "strength": "sampling.first_frame.strength",
    "redraw_condition_image_with_referencenet": "sampling.first_frame.with_reference",
    "redraw_condition_image_with_ipdapter": "sampling.first_frame.with_image_prompt",
    "redraw_condition_image_with_ip_adapter_face": "sampling.first_frame.with_face",
    "video_guidance_scale": "sampling.guidance.scale",
    "video_guidance_scale_end": "sampling.guidance.scale_end",
    "video_guidance_scale_method": "sampling.guidance.schedule",
    "video_num_inference_steps": "sampling.num_steps",
    "video_strength": "sampling.strength",
    "need_hist_match": "sampling.histogram_match",
    "img_weight": "sampling.img_weight",
    "w_ind_noise": "sampling.w_ind_noise",
    "motion_speed": "sampling.motion_speed",
    "ip_adapter_scale": "sampling.ip_adapter_scale",
    "ip_adapter_face_scale": "sampling.ip_adapter_face_scale",
    "prompt_only_use_image_prompt": "sampling.prompt_from_image",
    "context_frames": "sampling.windows.num_frames",
    "context_overlap": "sampling.windows.overlap",
    "context_stride": "sampling.windows.stride",
    "fps": "fps",
}
_SHOT_SETTINGS = {
    "fix_condition_images": "sampling.shots.fixed_condition",
    "fixed_refer_image": "sampling.shots.fixed_reference",
    "fixed_ip_adapter_image": "sampling.shots.fixed_image_prompt",
    "fixed_refer_face_image": "sampling.shots.fixed_face",
}


@dataclass(frozen=True, kw_only=True)
class MusevRun:
    """What one base model is to render."""

    model: str
    settings: Mapping[str, str]
    """Changes to the profile, as ``--set`` takes them."""
    rows: list[dict[str, Any]]
    """Manifest rows; media are absolute."""
    skipped: tuple[str, ...] = ()
    """Tasks that are not for this model: another sex or style."""


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A command line of the original, translated."""

    command: OriginalCommand
    runs: list[MusevRun]
    notes: list[str]
    """What a user of the original should know about this command line."""


def translate(
    command: OriginalCommand,
    profile: Profile,
    *,
    project: str,
    video_facts: VideoFacts = lambda uri: None,
) -> Translation:
    """Translate a command line of the original.

    Args:
        command: From :func:`~pipelines.musev_flags.read_command`.
        profile: The run's; tells which of the original's habits are kept.
        project: The original's folder, where its relative paths start; path or URL.
        video_facts: Measures driving videos.

    Returns:
        One run for each base model, in the table's order, and what should be known.

    Raises:
        ConfigError: If a table, model or task is unknown. A task file that cannot be read is a
            ManifestError.
    """
    return _Translator(command, profile, Paths(project), video_facts).translate()


@dataclass
class _Translator:
    command: OriginalCommand
    profile: Profile
    paths: Paths
    video_facts: VideoFacts
    notes: list[str] = field(default_factory=list)

    @property
    def weights(self) -> OriginalWeights:
        return OriginalWeights(command=self.command, paths=self.paths, profile=self.profile)

    def translate(self) -> Translation:
        self.notes += ignored_flags(self.command)
        self._tell_negative()
        self.notes += self.weights.notes()
        settings = self._settings()
        runs = []
        for model, entry in self.weights.models():
            own = self.weights.settings(entry)
            rows, skipped = self._rows(entry, own)
            runs.append(MusevRun(model=model, settings=settings | own, rows=rows, skipped=skipped))
        return Translation(command=self.command, runs=runs, notes=self.notes)

    # Sampling

    def _given(self, dest: str) -> bool:
        return dest in self.command.given

    def _settings(self) -> dict[str, str]:
        found = {
            setting: _spell(self.command[dest])
            for dest, setting in _SETTINGS.items()
            if self._given(dest)
        }
        if self.command.script == "video2video":
            # The original's video2video does not read --motion_speed.
            found["sampling.motion_speed"] = _spell(float(self.command["sample_rate"]))
            if keeps_habits(self.profile):
                found["sampling.first_frame.becomes_reference"] = "true"
        if not self.command["need_img_based_video_noise"]:
            found["sampling.img_weight"] = "0"
        if self.command["n_vision_condition"] == 0:
            found["sampling.first_frame.origin"] = "noise"
        if self.command.values.get("enable_zero_snr"):
            found["sampling.solver"] = "ddim_zero_snr"
        return found | self._kept_habits() | self._shots() | self._first_negative()

    def _kept_habits(self) -> dict[str, str]:
        """Noise and windows: the original's kinds exist beside ours."""
        found = {}
        keeps_noise = self.profile.sampling.noise != "counter"
        if self._given("noise_type") and keeps_noise:
            found["sampling.noise"] = _NOISES[self.command["noise_type"]]
        elif self.command["noise_type"] == "random":
            found["sampling.w_ind_noise"] = "1"
        layout = _LAYOUTS[self.command["context_schedule"]]
        wanted = keeps_habits(self.profile) or layout == "upstream_uniform"
        if self._given("context_schedule") and wanted:
            found["sampling.windows.layout"] = layout
        return found

    def _shots(self) -> dict[str, str]:
        if self.command["n_batch"] <= 1:
            return {}
        if not keeps_habits(self.profile):
            self.notes.append(
                f"the {self.command['n_batch']} shots become one video of the same length: its "
                "windows agree with each other, and spread over the workers"
            )
            return {}
        found = {"sampling.shots.num_frames": str(self.command["time_size"])}
        found |= {
            setting: _spell(self.command[dest])
            for dest, setting in _SHOT_SETTINGS.items()
            if self._given(dest)
        }
        if self.command.script == "video2video":
            # ALGORITHM.md 11: later shots go on from one frame, whatever --n_vision_condition.
            found["sampling.shots.carried_frames"] = "1"
            return found | self._smoothing()
        if carried := self.command["n_vision_condition"]:
            found["sampling.shots.carried_frames"] = str(carried)
        return found

    def _smoothing(self) -> dict[str, str]:
        latents = self.command["record_mid_video_latents"]
        estimates = self.command["record_mid_video_noises"]
        if not latents and not estimates:
            return {}
        return {
            "sampling.shots.smoothed_frames": str(self.command["video_overlap"]),
            "sampling.shots.smooth_latents": _spell(latents),
            "sampling.shots.smooth_estimates": _spell(estimates),
        }

    # Negative prompts

    def _negatives(self) -> Mapping[str, str]:
        if str(self.command["negprompt_cfg_path"]).lower() == "none":
            return {}
        table = self.weights.table("negative_prompt", "negprompt_cfg_path")
        return {name: entry["prompt"] for name, entry in table.items()}

    def _negative(self, asked: str) -> str:
        table = self._negatives()
        if table and re.fullmatch(r"V\d+|Empty", asked, flags=re.IGNORECASE):
            check_name(asked, table, flag="--video_negative_prompt", where="the table")
        return table.get(asked, asked)

    def _holds_v2(self) -> bool:
        return not missing_tokens(NEGATIVE_PROMPTS["V2"], self.profile.weights.embeddings)

    def _tell_negative(self) -> None:
        """The original's default holds words whose files are not among the published weights."""
        if not self._given("video_negative_prompt") and not self._holds_v2():
            self.notes.append(
                "tasks without a negative prompt take the profile's. The original's default, V2, "
                "is V5 with two words in front that need files: "
                "--set weights.embeddings.badhandv4=FILE and "
                "--set weights.embeddings.ng_deepnegative_v1_75t=FILE bring it back"
            )

    def _first_negative(self) -> dict[str, str]:
        if not self._given("negative_prompt"):
            return {}
        text = self._negative(self.command["negative_prompt"])
        return {"sampling.first_frame.negative_prompt": text}

    # Rows

    def _rows(
        self, entry: Mapping[str, Any], weights: Mapping[str, str]
    ) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        uri = self.paths.find(self.command["test_data_path"])
        asked, tasks = self.command["target_datas"], load_task_file(uri)
        names = choose_names(asked, task_names(tasks), flag="--target_datas", where=uri)
        skipped: list[str] = []

        def adapt(task: Task) -> Task | None:
            if other := _other_kind(task, entry):
                skipped.append(f"{task.get('name')}: {other}")
                return None
            return self._adapt(task, weights)

        # With all, unreadable tasks are rows too, that fail.
        keep = None if asked == "all" else names
        rows = task_rows(tasks, keep=keep, adapt=adapt, negatives={})
        return [again for row in rows for again in self._repeats(row)], tuple(skipped)

    def _repeats(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        if self.command["seed"] is not None:
            return [row]
        repeats = range(2, self.command["n_repeat"] + 1)
        name = row.get("request_id")
        return [row, *({**row, "request_id": f"{name}-repeat-{number}"} for number in repeats)]

    def _adapt(self, task: Task, weights: Mapping[str, str]) -> Task:
        """Fill in what the command line says where the task says nothing."""
        filled = {key: value for key, value in task.items() if value is not None}
        for name in ("height", "width", "img_length_ratio", "seed"):
            if self.command[name] is not None:
                filled.setdefault(name, self.command[name])
        if not self.command["use_condition_image"] or self.command["n_vision_condition"] == 0:
            filled.pop("condition_images", None)
        if self.command["redraw_condition_image"]:
            filled.setdefault("redraw_condition_image", True)
        if "condition_images" not in filled:
            for name in ("redraw_condition_image", "condition_images_index"):
                filled.pop(name, None)
        self._pictures(filled, weights)
        self._prompts(filled)
        if self.command.script == "text2video":
            for name in ("video_path", "video_is_middle", "video_has_condition"):
                filled.pop(name, None)
            filled["num_frames"] = self._length(filled)
        else:
            self._video(filled)
        for name in ("condition_images", "refer_image", "ipadapter_image", "face_image"):
            if name in filled:
                filled[name] = self.paths.media(filled[name])
        return filled

    def _pictures(self, task: Task, weights: Mapping[str, str]) -> None:
        """Reference, image prompt and face: only with their networks; else the condition's."""
        for name, flag, part in (
            ("refer_image", "referencenet_image_path", "weights.referencenet"),
            ("ipadapter_image", "ipadapter_image_path", "weights.image_prompt"),
            ("face_image", "face_image_path", "weights.face"),
        ):
            if weights.get(part, "none") == "none":
                task.pop(name, None)
                continue
            given = task.get(name) or self.command[flag] or task.get("condition_images")
            if given:
                task[name] = given

    def _prompts(self, task: Task) -> None:
        own = task.get("video_negative_prompt")
        if own is None and (self._given("video_negative_prompt") or self._holds_v2()):
            own = self.command["video_negative_prompt"]
        if own is not None:
            task["video_negative_prompt"] = self._negative(str(own))
        first = task.pop("negative_prompt", None)
        if first is not None:
            task["first_frame_negative_prompt"] = self._negative(str(first))
        if self.command["add_static_video_prompt"] and self.command.script == "text2video":
            text = task.get("video_negative_prompt", self.profile.negative_prompt)
            task["video_negative_prompt"] = f"static video, {text}"

    def _length(self, task: Task) -> int:
        given = task.get("condition_images")
        num_given = len(given) if isinstance(given, list) else int(given is not None)
        return self.command["n_batch"] * self.command["time_size"] + num_given

    def _video(self, task: Task) -> None:
        if "video_path" not in task:
            task["video"] = BadCell("video2video needs a video_path. Add it to the task.")
            return
        # The original counts frames; by time, a clip keeps the speed of what is filmed.
        if self._given("sample_rate") or keeps_habits(self.profile):
            task["sample_rate"] = self.command["sample_rate"]
        task["video_path"] = uri = self.paths.media(task["video_path"])
        task.setdefault("video_is_middle", self.command["video_is_middle"])
        if "condition_images" in task:
            task.setdefault("video_has_condition", self.command["video_has_condition"])
        else:
            task.pop("video_has_condition", None)
        task.pop("motion_speed", None)
        starts = self.command["need_video2video"] or self.command["which2video"] == "video"
        if starts and task["video_is_middle"] in (False, "false"):  # maps are no pictures
            task["start_from_video"] = True
        if names := control_names(self.command):
            task["control"] = names
            scale = self.command["controlnet_conditioning_scale"]
            if scale != 1.0:
                task["control_scale"] = [scale] * len(names)
        outside = "condition_images" in task and not task["video_has_condition"]
        length = self.command["n_batch"] * self.command["time_size"] + outside
        if facts := self.video_facts(uri):
            length = min(length, self._frames_of(facts, task.get("sample_rate")) + outside)
            if "condition_images" not in task:
                task.setdefault("width", facts.width)
                task.setdefault("height", facts.height)
        task["num_frames"] = length

    def _frames_of(self, facts: VideoInfo, sample_rate: int | None) -> int:
        if sample_rate is not None:
            return math.ceil(facts.num_frames / sample_rate)
        fps = self.command["fps"] if self._given("fps") else self.profile.fps
        return max(1, math.floor(facts.num_frames * fps / facts.fps))


def original_name(command: OriginalCommand, model: str, request: ClipRequest) -> str:
    """File name that the original would give a row's video.

    Args:
        command: The original's command line.
        model: Name of the base model.
        request: The row, resolved.

    Returns:
        The name; seeds that the original draws at random are the row's own.
    """
    sampling = request.sampling
    parts = NameParts(
        model=model,
        reference_net=command["referencenet_model_name"] or "no",
        task=request.request_id,
        width=request.width,
        height=request.height,
        time_size=command["time_size"],
        num_shots=command["n_batch"],
        seed=request.seed,
        prompt_hash=short_hash(request.prompt),
        img_weight=sampling.img_weight,
        motion_speed=sampling.motion_speed,
        strength=command["strength"],
        guidance_scale=command["guidance_scale"],
        video_guidance_scale=sampling.guidance.scale,
        condition=stem_of(request.pictures("condition_image")),
        redraw=request.redraw,
        w_ind_noise=sampling.w_ind_noise,
        negative=command["video_negative_prompt"],
        reference=stem_of(request.pictures("reference_image")),
        face=stem_of(request.pictures("face_image")),
        which="vm2v" if command.values.get("which2video") == "video_middle" else "v2v",
        video_steps=sampling.num_steps,
        control=command.values.get("controlnet_name"),
        video_strength=command.values.get("video_strength", 1.0),
    )
    return (text2video_name if command.script == "text2video" else video2video_name)(parts)


def _other_kind(task: Task, entry: Mapping[str, Any]) -> str:
    """Why a task is not for a base model: both say a sex or a style, and not the same."""
    for key in ("sex", "style"):
        asked, held = task.get(key), entry.get(key)
        if asked and held and asked != held:
            return f"{key} {asked!r}, and the model is for {held!r}"
    return ""


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)
