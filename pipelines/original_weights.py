"""Which weights a command line of the original names, and where its relative paths lie."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec

from musev.config import Profile
from musev.control.control_names import CONTROLS
from musev.errors import ConfigError
from pipelines.checks import media_uri
from pipelines.model_tables import BUILT_IN, TABLE_VARIABLES, Table, choose_names
from pipelines.musev_flags import OriginalCommand
from pipelines.python_tables import read_python_table


def find_path(project: str, path: str) -> str:
    """Find what the original's command line calls by a path.

    Args:
        project: The original's folder, path or URL.
        path: Absolute, a URL, or relative to that folder.

    Returns:
        The path or URL.
    """
    if "://" in path or path.startswith("/"):
        return path
    base, separator, rest = project.rpartition("://")
    return base + separator + posixpath.normpath(posixpath.join(rest, path))


@dataclass(frozen=True)
class Paths:
    """Places of the original's folder."""

    project: str

    def find(self, path: str) -> str:
        """A path of the command line or of a table."""
        return find_path(self.project, path)

    def media(self, path: Any) -> Any:
        """The same for media, which are URIs; what is no text stays what it is."""
        if isinstance(path, list):
            return [self.media(item) for item in path]
        if not isinstance(path, str) or not path.strip():
            return path
        found = self.find(path)
        return found if "://" in found else media_uri(posixpath.abspath(found), "file:///")

    def exists(self, path: str) -> bool:
        fs, inner = fsspec.core.url_to_fs(self.find(path))
        return fs.exists(inner)


def control_names(command: OriginalCommand) -> list[str]:
    """Names that ``--controlnet_name`` gives; none for text2video."""
    names = str(command.values.get("controlnet_name") or "").split(",")
    return [name.strip() for name in names if name.strip()]


def keeps_habits(profile: Profile) -> bool:
    """Whether a profile is one that repeats what the original does."""
    return profile.sampling.windows.layout.startswith("upstream")


def check_name(name: str, names: Iterable[str], *, flag: str, where: str) -> None:
    """Refuse what is not exactly one name.

    Args:
        name: The name that a flag gives.
        names: The names there are.
        flag: The flag, for the error.
        where: Where the names are, for the error.

    Raises:
        ConfigError: If it is unknown, or several; the nearest are told.
    """
    if choose_names(name, names, flag=flag, where=where) != [name]:
        raise ConfigError(f"{flag} takes one name of {where}, got {name!r}.")


@dataclass(frozen=True, kw_only=True)
class OriginalWeights:
    """The weights that a command line names, as settings."""

    command: OriginalCommand
    paths: Paths
    profile: Profile

    def settings(self, entry: Mapping[str, Any]) -> dict[str, str]:
        """Say where everything lies.

        Args:
            entry: Of the table of base models, from :meth:`models`.

        Returns:
            Settings by dotted name.

        Raises:
            ConfigError: If a table or a name in it is unknown, or an entry is incomplete.
        """
        lcm = self._lcm()
        found = self._base(entry) | self._motion() | self._reference() | self._image_prompt()
        found |= self._face() | self._controlnets() | lcm
        return found | self._loras(entry, lcm.get("loras", ""))

    def notes(self) -> list[str]:
        """What is left out although it is named."""
        named = self.command["ip_adapter_model_name"] is not None
        if not named or self.command["vision_clip_extractor_class_name"] is not None:
            return []
        return [
            "image prompts are off, as in the original: --ip_adapter_model_name without "
            "--vision_clip_extractor_class_name computes none"
        ]

    def table(self, kind: str, flag: str) -> Table:
        """The table that a ``..._cfg_path`` names; built in where the default is not there."""
        path = str(self.command[flag]).replace("$PROJECT/", "")
        if flag not in self.command.given and not self.paths.exists(path):
            return BUILT_IN[kind]
        return read_python_table(self.paths.find(path), TABLE_VARIABLES.get(kind, "MODEL_CFG"))

    def _entry(self, kind: str, name: str, flag: str) -> Mapping[str, Any] | str:
        """A named entry of a table; a path where the flag names a folder or file instead."""
        path = str(self.command[flag])
        if flag in self.command.given and not path.endswith(".py"):
            return self.paths.find(path)
        table = self.table(kind, flag)
        check_name(name, table, flag=f"--{flag.replace('_cfg_path', '_name')}", where=path)
        return table[name]

    def _place(self, kind: str, name: str, flag: str, key: str) -> str:
        entry = self._entry(kind, name, flag)
        if isinstance(entry, str):
            return entry
        if not isinstance(entry.get(key), str):
            raise ConfigError(f"--{flag}: the entry {name!r} has no {key!r}. Add it to the table.")
        return self.paths.find(entry[key])

    def models(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Names and entries of the base models, in the table's order."""
        asked, path = self.command["sd_model_name"], str(self.command["sd_model_cfg_path"])
        if asked == "None":
            folder = self.paths.find(path)
            return [(posixpath.basename(folder.rstrip("/")).split(".")[0], {"sd": folder})]
        if "sd_model_cfg_path" in self.command.given and not path.endswith(".py"):
            raise ConfigError(
                f"--sd_model_cfg_path {path} is no table (.py). Give --sd_model_name None as well "
                "if it is a model's folder."
            )
        table = self.table("t2i", "sd_model_cfg_path")
        names = choose_names(asked, table, flag="--sd_model_name", where=path)
        return [(name, table[name]) for name in names]

    def _base(self, entry: Mapping[str, Any]) -> dict[str, str]:
        if not isinstance(entry.get("sd"), str):
            raise ConfigError("an entry of the table of base models has no 'sd'. Add it.")
        vae = entry.get("vae") or self.command["vae_model_path"]
        return {"weights.t2i": self.paths.find(entry["sd"]), "weights.vae": self.paths.find(vae)}

    def _motion(self) -> dict[str, str]:
        name = self.command["unet_model_name"]
        place = self._place("motion", name, "unet_model_cfg_path", "unet")
        return {"weights.motion": place, "weights.motion_name": name}

    def _reference(self) -> dict[str, str]:
        name = self.command["referencenet_model_name"]
        if name is None:
            return {"weights.referencenet": "none"}
        flag = "referencenet_model_cfg_path"
        return {"weights.referencenet": self._place("referencenet", name, flag, "net")}

    def _image_prompt(self) -> dict[str, str]:
        name = self.command["ip_adapter_model_name"]
        off = {"weights.image_prompt": "none", "weights.image_encoder": "none"}
        if name is None or self.command["vision_clip_extractor_class_name"] is None:
            return off
        file = self._place("ip_adapter", name, "ip_adapter_model_cfg_path", "ip_ckpt")
        encoder = self.paths.find(self.command["vision_clip_model_path"])
        return {"weights.image_prompt": file, "weights.image_encoder": encoder}

    def _face(self) -> dict[str, str]:
        name = self.command["ip_adapter_face_model_name"]
        if name is None:
            return {}
        flag = "ip_adapter_face_model_cfg_path"
        return {"weights.face": self._place("ip_adapter", name, flag, "ip_ckpt")}

    def _lcm(self) -> dict[str, str]:
        name = self.command["lcm_model_name"]
        if name is None:
            return {}
        entry = self._entry("lcm", name, "lcm_model_cfg_path")
        choice = f"{entry}:1:ALL" if isinstance(entry, str) else self._spell_loras(entry)
        return {"sampling.solver": "lcm", "loras": choice}

    def _loras(self, entry: Mapping[str, Any], lcm: str) -> dict[str, str]:
        own = entry.get("lora") or {}
        spelled = ";".join(part for part in (self._spell_loras(own), lcm) if part)
        if not spelled:
            return {}
        found = {"loras": spelled}
        if keeps_habits(self.profile):
            found["weights.lora_merge"] = "upstream"
        return found

    def _spell_loras(self, table: Mapping[str, Any]) -> str:
        """LoRAs of a table as a manifest spells them; the original adds strength and offset."""
        spelled = []
        for path, how in table.items():
            strength = float(how.get("strength", 1)) + float(how.get("strength_offset", 0))
            blocks = how.get("lora_block_weight") or "ALL"
            if isinstance(blocks, list):
                blocks = ",".join(f"{float(weight):g}" for weight in blocks)
            spelled.append(f"{self.paths.find(path)}:{strength:g}:{blocks}")
        return ";".join(spelled)

    def _controlnets(self) -> dict[str, str]:
        if self.command.script == "text2video":
            return {}
        names = control_names(self.command)
        for name in names:
            check_name(name, CONTROLS, flag="--controlnet_name", where="docs/control.md")
        nets = {
            f"weights.controlnets.{CONTROLS[name].controlnet}": f"hf://{CONTROLS[name].published}"
            for name in names
        }
        if guider := self.command["pose_guider_model_path"]:
            nets["weights.pose_guider"] = self.paths.find(guider)
        return nets
