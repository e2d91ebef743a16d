"""Every flag of the original's two scripts: what it is called, what it defaults to, where it went.

Source:
    Upstream scripts/inference/text2video.py and video2video.py; ALGORITHM.md section 2, goldens
    functions/cli.json. The table in docs/from-musev.md is written from this one.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from musev.errors import ConfigError

Script = Literal["text2video", "video2video"]
Kind = Literal["text", "integer", "number", "on", "off"]
Home = Literal["rows", "column", "setting", "weights", "run", "ignored", "refused"]

HOMES: dict[Home, str] = {
    "rows": "decides which rows there are",
    "column": "manifest column",
    "setting": "setting",
    "weights": "weights",
    "run": "option of the run",
    "ignored": "accepted, does nothing",
    "refused": "refused",
}
"""What the kinds of home mean, for the table."""

_PROJECT = "$PROJECT"


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag of the original."""

    name: str
    kind: Kind
    default: Any
    home: Home
    where: tuple[str, ...]
    """Columns or settings that hold its value here; empty where it has none."""
    about: str
    """What became of it, or why it is gone."""
    choices: tuple[str, ...] = ()
    only: Script | None = None

    @property
    def dest(self) -> str:
        """Name without dashes."""
        return self.name.lstrip("-")


# An entry a flag: name, kind, default, home; "of" its choices; "at" the columns and settings that
# hold it; then what became of it.
_TABLE = """
-test_data_path | text | - | rows
    the task file; `--manifest` takes it as well, unchanged
--target_datas | text | all | rows
    tasks by name; an unknown name is an error that tells its neighbours
--sd_model_cfg_path | text | $PROJECT/configs/model/T2I_all_model.py | weights
    at: weights.t2i
    table of base models, read as data; or a folder, with `--sd_model_name None`
--sd_model_name | text | all | weights
    at: weights.t2i
    one run a model, one after the other, each into a folder of its name
--unet_model_cfg_path | text | $PROJECT/./configs/model/motion_model.py | weights
    at: weights.motion
    table of motion networks, or a folder
--unet_model_name | text | musev_referencenet | weights
    at: weights.motion weights.motion_name
    which motion network, and of which kind
--lcm_model_cfg_path | text | $PROJECT/./configs/model/lcm_model.py | weights
    at: loras
    table of LCM LoRAs
--lcm_model_name | text | - | weights
    of: lcm
    at: loras sampling.solver
    adds the LCM LoRA and takes its solver
--referencenet_model_cfg_path | text | $PROJECT/./configs/model/referencenet.py | weights
    at: weights.referencenet
    table, or a folder
--referencenet_model_name | text | - | weights
    of: musev_referencenet musev_referencenet_pose
    at: weights.referencenet
    without it there is none, and reference images are left out
--ip_adapter_model_cfg_path | text | $PROJECT/./configs/model/ip_adapter.py | weights
    at: weights.image_prompt
    table, or a file
--ip_adapter_model_name | text | - | weights
    of: musev_referencenet musev_referencenet_pose
    at: weights.image_prompt
    without it there is none, and image prompts are left out
--vision_clip_model_path | text | ./checkpoints/ip_adapter/models/image_encoder | weights
    at: weights.image_encoder
    folder of the CLIP image encoder
--vision_clip_extractor_class_name | text | - | weights
    of: ImageClipVisionFeatureExtractor
    at: weights.image_encoder
    as in the original, without it no image prompt is computed
--facein_model_cfg_path | text | $PROJECT/./configs/model/facein.py | ignored
    FaceIn was never released
--facein_model_name | text | - | refused
    FaceIn was never released; `--ip_adapter_face_model_name` keeps faces
--ip_adapter_face_model_cfg_path | text | $PROJECT/./configs/model/ip_adapter.py | weights
    at: weights.face
    table, or a file
--ip_adapter_face_model_name | text | - | weights
    at: weights.face
    an IP-Adapter FaceID
--output_dir | text | $PROJECT/results | run
    `--output`; videos are found through the results table, whose `extra` tells the original's
    file name
--save_filetype | text | mp4 | run
    of: gif mp4 webp images
    videos are mp4 (H.264); other kinds are made from them into `OUT/<model>/exports/`, under
    the original's names
--save_images | on | - | run
    also writes every frame, into a folder of the video's name in `OUT/<model>/exports/`
--overwrite | on | - | ignored
    a video's name is a hash of all that decides its bytes: nothing stale is ever taken for it,
    and what is there need not be made again
--seed | integer | - | column
    at: seed
    one seed for every row; without it each row's follows from its name, so a repeat gives the
    same video
--cross_attention_dim | integer | 768 | ignored
    read from the weights' own config
--n_batch | integer | 1 | column
    at: num_frames shot_frames
    shots; with profile `musev` they become one video of the same length, whose windows agree
--fps | integer | 4 | column
    at: fps
    frames a second of the file
--use_condition_image | off | - | column
    at: condition_image
    naming it leaves the task's image out
--fix_condition_images | on | - | setting
    at: sampling.shots.fixed_condition
    every shot starts from the first one's image
--redraw_condition_image | on | - | column
    at: redraw
    the image is drawn anew from itself first
--need_img_based_video_noise | off | - | setting
    at: sampling.img_weight
    naming it sets the weight to 0
--img_weight | number | 0.001 | column
    at: img_weight
    share of the image in the initial noise
--write_info | on | - | refused
    text is not drawn into videos; the results table holds what it would say
--height | integer | - | column
    at: height
    in pixels, before `img_length_ratio`
--width | integer | - | column
    at: width
    in pixels, before `img_length_ratio`
--img_length_ratio | number | 1.0 | column
    at: img_length_ratio
    scales both sides; then they are rounded down to 64
--n_cols | integer | 3 | ignored
    it lays several videos out in one picture; one row is one video here
--time_size | integer | 12 | column
    at: num_frames shot_frames
    frames of a shot; with condition images these come on top
--noise_type | text | video_fusion | setting
    of: video_fusion random
    at: sampling.noise
    `random` with profile `musev`: `w_ind_noise` 1
--guidance_scale | number | 7.5 | setting
    at: sampling.first_frame.guidance.scale
    of the first frame, where it is drawn
--video_guidance_scale | number | 3.5 | column
    at: guidance_scale
    of the video
--video_guidance_scale_end | number | - | column
    at: guidance_scale_end
    at the last step
--video_guidance_scale_method | text | linear | column
    of: linear two_stage three_stage fix_two_stage
    at: guidance_schedule
    how it gets there
--num_inference_steps | integer | 30 | setting
    at: sampling.first_frame.num_steps
    of the first frame, where it is drawn
--video_num_inference_steps | integer | 10 | column
    at: steps
    of the video
--strength | number | 0.8 | column
    at: redraw_strength
    of a redraw. Dead in the original, hence with profile `upstream`; works with `musev`
--negprompt_cfg_path | text | $PROJECT/configs/model/negative_prompt.py | rows
    table of negative prompts; `None` takes texts literally
--video_negative_prompt | text | V2 | column
    at: negative_prompt
    a name of the table, or the text itself
--negative_prompt | text | V2 | column
    at: first_frame_negative_prompt
    of the first frame, where it is drawn; without it the video's
--motion_speed | number | 8.0 | column
    at: motion_speed
    text2video only, as there; in video2video it is `--sample_rate`
--need_hist_match | on | - | column
    at: histogram_match
    frames are matched to the first one (video2video of the original altered the source instead)
--log_level | text | INFO | ignored
    the run says what it does; Ray's own logs have Ray's own settings
--add_static_video_prompt | on | - | column
    at: negative_prompt
    puts `static video, ` in front of the video's negative prompt; text2video only, as there
--n_vision_condition | integer | 1 | setting
    at: sampling.shots.carried_frames sampling.first_frame.origin
    frames that the next shot goes on from; 0 makes all frames from noise
--fixed_refer_image | off | - | setting
    at: sampling.shots.fixed_reference
    naming it lets later shots refer to the last frames
--fixed_ip_adapter_image | off | - | setting
    at: sampling.shots.fixed_image_prompt
    naming it: the same for the image prompt
--fixed_refer_face_image | off | - | setting
    at: sampling.shots.fixed_face
    naming it: the same for the face
--redraw_condition_image_with_referencenet | off | - | setting
    at: sampling.first_frame.with_reference
    naming it keeps the reference from the first frame
--redraw_condition_image_with_ipdapter | off | - | setting
    at: sampling.first_frame.with_image_prompt
    naming it: the same for the image prompt
--redraw_condition_image_with_facein | off | - | ignored
    FaceIn was never released
--w_ind_noise | number | 0.5 | column
    at: w_ind_noise
    share of a frame's own noise
--ip_adapter_scale | number | 1.0 | setting
    at: sampling.ip_adapter_scale
    weight of the image prompt
--facein_scale | number | 1.0 | ignored
    FaceIn was never released
--face_image_path | text | - | column
    at: face_image
    for tasks that name none
--ipadapter_image_path | text | - | column
    at: ip_adapter_image
    for tasks that name none
--referencenet_image_path | text | - | column
    at: reference_image
    for tasks that name none
--vae_model_path | text | ./checkpoints/vae/sd-vae-ft-mse | weights
    at: weights.vae
    a base model's own `vae` entry comes first
--redraw_condition_image_with_ip_adapter_face | off | - | setting
    at: sampling.first_frame.with_face
    naming it keeps the face from the first frame
--ip_adapter_face_scale | number | 1.0 | setting
    at: sampling.ip_adapter_face_scale
    weight of the face
--prompt_only_use_image_prompt | on | - | setting
    at: sampling.prompt_from_image
    image tokens in the prompt's place, where the network has no branch for them
--record_mid_video_noises | on | - | setting
    at: sampling.shots.smooth_estimates
    mixes estimates of neighbouring shots; video2video only, as there
--record_mid_video_latents | on | - | setting
    at: sampling.shots.smooth_latents
    mixes latents of neighbouring shots; video2video only, as there
--video_overlap | integer | 1 | setting
    at: sampling.shots.smoothed_frames
    over how many frames; 0 unless one of the two above is named
--context_schedule | text | uniform_v2 | column
    of: uniform uniform_v2
    at: layout
    `upstream` and `upstream_uniform`; profile `musev` has windows that move from step to step
--context_frames | integer | 12 | column
    at: window
    frames of a window
--context_stride | integer | 1 | setting
    at: sampling.windows.stride
    of `uniform` only
--context_overlap | integer | 4 | column
    at: overlap
    frames that neighbours share
--context_batch_size | integer | 1 | ignored
    above 1 the original crashes; windows go to whatever worker is free
--interpolation_factor | integer | 1 | ignored
    the original never reads it
--n_repeat | integer | 1 | rows
    repeats of every row, each with a seed of its own; with `--seed` they would be equal, so there
    is one
--video_strength v2v | number | 1.0 | column
    at: strength
    how much of the video is made anew. Dead in the original, hence with profile `upstream`; works
    with `musev`
--controlnet_name v2v | text | - | column
    at: control
    names of docs/control.md, separated by commas
--sample_rate v2v | integer | 1 | column
    at: sample_rate motion_speed
    every so many frames of the source
--controlnet_conditioning_scale v2v | number | 1.0 | column
    at: control_scale
    of every ControlNet
--which2video v2v | text | video | column
    of: video video_middle
    at: start_from_video
    `video` starts from the video's frames, as `--need_video2video` does
--end_to_end v2v | off | - | ignored
    the original never reads it
--need_video2video v2v | on | - | column
    at: start_from_video
    frames start from the video's and not from noise
--pose_guider_model_path v2v | text | - | weights
    at: weights.pose_guider
    a pose guider in a ControlNet's place
--enable_zero_snr v2v | on | - | setting
    at: sampling.solver
    `ddim_zero_snr`: DDIM with zero terminal SNR and v-prediction
--video_is_middle v2v | on | - | column
    at: video_is_control
    the video's frames are control maps already (the original's help says the opposite)
--video_has_condition v2v | off | - | column
    at: video_has_condition
    naming it: the condition image is none of the video's frames
--need_return_videos v2v | on | - | ignored
    it lays several videos out in one picture; one row is one video here
--need_return_condition v2v | on | - | ignored
    it lays several videos out in one picture; one row is one video here
"""


def _read_table(text: str) -> dict[str, Flag]:
    flags: dict[str, Flag] = {}
    for entry in re.split(r"\n(?=-)", text.strip()):
        head, *lines = [line.strip() for line in entry.split("\n")]
        name, kind, default, home = head.split(" | ")
        name, _, only = name.partition(" ")
        about = [line for line in lines if not line.startswith(("of: ", "at: "))]
        convert = _TYPES.get(kind)  # pyright: ignore[reportArgumentType]
        value = kind == "off" if convert is None else None if default == "-" else convert(default)
        flags[name] = Flag(
            name=name,
            kind=kind,
            default=value,
            home=home,
            where=_words(lines, "at: "),
            about=" ".join(about),
            choices=_words(lines, "of: "),
            only="video2video" if only else None,
        )
    return flags


def _words(lines: Sequence[str], mark: str) -> tuple[str, ...]:
    return tuple(word for line in lines if line.startswith(mark) for word in line.split()[1:])


_TYPES: dict[Kind, type] = {"text": str, "integer": int, "number": float}
FLAGS = _read_table(_TABLE)
"""All flags by name, in the original's order."""


@dataclass(frozen=True, kw_only=True)
class OriginalCommand:
    """A command line of the original, read."""

    script: Script
    values: Mapping[str, Any]
    """Value of every flag, by name without dashes."""
    given: frozenset[str]
    """Flags that the command line names."""

    def __getitem__(self, dest: str) -> Any:
        """The value of a flag, given or default."""
        return self.values[dest]


def read_command(words: Sequence[str]) -> OriginalCommand:
    """Read a command line of the original.

    Args:
        words: As a shell splits it, or one text. What stands before the script's name (``python``,
            variables) is left out.

    Returns:
        The flags' values.

    Raises:
        ConfigError: If it names neither script, or a flag is unknown, misused or refused.
    """
    if len(words) == 1:
        try:
            words = shlex.split(words[0].replace("\\\n", " "))
        except ValueError as problem:
            raise ConfigError(f"the command line cannot be read: {problem}") from None
    script, rest = _find_script(words)
    flags = [flag for flag in FLAGS.values() if flag.only in (None, script)]
    given = vars(_parser(script, flags).parse_args([word for word in rest if word.strip()]))
    values = {flag.dest: given.get(flag.dest, flag.default) for flag in flags}
    command = OriginalCommand(script=script, values=values, given=frozenset(given))
    for flag in flags:
        if flag.home == "refused" and values[flag.dest] != flag.default:
            raise ConfigError(f"{flag.name} is not possible here: {flag.about}. Take it out.")
    return command


def ignored_flags(command: OriginalCommand) -> list[str]:
    """Say what the command line names in vain, one line a flag."""
    return [
        f"{flag.name} does nothing: {flag.about}"
        for flag in FLAGS.values()
        if flag.home == "ignored" and flag.dest in command.given
    ]


def _find_script(words: Sequence[str]) -> tuple[Script, Sequence[str]]:
    scripts: tuple[Script, ...] = ("text2video", "video2video")
    for place, word in enumerate(words):
        stem = word.rpartition("/")[2].removesuffix(".py")
        for script in scripts:
            if stem == script:
                return script, words[place + 1 :]
    raise ConfigError(
        "the command line must name text2video.py or video2video.py, as in "
        "'python scripts/inference/text2video.py -test_data_path tasks.yaml'."
    )


class _Parser(argparse.ArgumentParser):
    """Raises what argparse would print and exit with."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}")


def _parser(script: Script, flags: Sequence[Flag]) -> argparse.ArgumentParser:
    parser = _Parser(prog=f"{script}.py", add_help=False, argument_default=argparse.SUPPRESS)
    for flag in flags:
        if flag.kind in ("on", "off"):
            action = "store_true" if flag.kind == "on" else "store_false"
            parser.add_argument(flag.name, action=action, dest=flag.dest)
            continue
        parser.add_argument(
            flag.name,
            dest=flag.dest,
            type=_TYPES[flag.kind],
            choices=flag.choices or None,
            required=flag.name == "-test_data_path",
        )
    parse = parser.parse_known_args

    def parse_all(args: Sequence[str]) -> argparse.Namespace:
        found, unknown = parse(args)
        if unknown:
            near = difflib.get_close_matches(unknown[0].partition("=")[0], FLAGS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{script}.py has no flag {unknown[0]!r}.{hint}")
        return found

    parser.parse_args = parse_all
    return parser


def flag_table() -> list[str]:
    """Lines of the table in docs/from-musev.md."""
    lines = ["| flag | default | home | what became of it |", "|---|---|---|---|"]
    for flag in FLAGS.values():
        name = f"`{flag.name}`" + (" (v2v)" if flag.only else "")
        default = {"on": "off", "off": "on"}.get(flag.kind) or _shown(flag.default)
        where = ", ".join(f"`{place}`" for place in flag.where)
        home = f"{HOMES[flag.home]} {where}".strip() if where else HOMES[flag.home]
        lines.append(f"| {name} | {default} | {home} | {flag.about} |")
    return lines


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    return f"`{str(default).replace('./', '').removeprefix(_PROJECT + '/')}`"
