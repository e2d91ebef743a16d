"""Training of the image encoder: it learns to name what a person in a picture looks like.

The published model takes over an image encoder that knows pictures (CLIP's). The miniature's starts
from nothing, and the error of a diffusion, many layers away, taught it little but shirt colours. So
it first learns to tell the drawn people's looks; what it learnt to tell them by is thrown away.
"""

# Axes here: B picture, C channel, Y X pixel rows and columns, N look, D embedding width.
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from musev.synthetic.clips import Clip
from musev.synthetic.people import (
    CLOTHES_COLORS,
    HAIR_COLORS,
    HAIR_STYLES,
    SCENES,
    SHIRT_SHAPES,
    SKIN_COLORS,
    TROUSERS_SHAPES,
)
from musev.training.clip_batches import image_prompt_pixels
from musev.training.frames import picture_clips
from musev.training.optimizer import Batch, Losses

UNSEEN = "unseen"
LOOKS: dict[str, tuple[str, ...]] = {
    "skin": tuple(SKIN_COLORS),
    "hair_color": (*HAIR_COLORS, UNSEEN),
    "hair_style": HAIR_STYLES,
    "shirt_color": tuple(CLOTHES_COLORS),
    "shirt_shape": SHIRT_SHAPES,
    "trousers_color": (*CLOTHES_COLORS, UNSEEN),
    "trousers_shape": (*TROUSERS_SHAPES, UNSEEN),
    "scene": (*SCENES, UNSEEN),
}
"""What is told apart, and its values: attributes of a drawn clip."""
FRAME_SHARE = 1 / 3
"""Share of pictures that are a clip's first frame; all others are portraits."""


class VisionTraining(nn.Module):
    """The image encoder with a linear reader for every look.

    Args:
        image_encoder: Learns; its projected embedding is read.
    """

    def __init__(self, image_encoder: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        width = image_encoder.config.projection_dim
        self.readers = nn.ModuleDict(
            {look: nn.Linear(width, len(values)) for look, values in LOOKS.items()}
        )

    def forward(self, batch: Batch) -> Losses:
        """Cross entropy summed over the looks.

        Args:
            batch: From :func:`look_batch`.

        Returns:
            ``loss``, and ``right``: the share of looks that are named rightly.
        """
        answers, looks_BN = self.answers(batch["image_prompt_BCYX"]), batch["looks_BN"]
        losses = [F.cross_entropy(a, looks_BN[:, n]) for n, a in enumerate(answers.values())]
        right = _right(answers, looks_BN)
        return {"loss": torch.stack(losses).sum(), "right": torch.stack([*right.values()]).mean()}

    def answers(self, image_prompt_BCYX: Tensor) -> dict[str, Tensor]:
        """Logits of every look's values."""
        embedding_BD = self.image_encoder(pixel_values=image_prompt_BCYX).image_embeds
        return {look: reader(embedding_BD) for look, reader in self.readers.items()}


@torch.no_grad()
def right_by_look(module: VisionTraining, batch: Batch) -> dict[str, float]:
    """Share of pictures of which a look is named rightly.

    Args:
        module: With its readers.
        batch: From :func:`look_batch`.

    Returns:
        ``right_skin`` and so on.
    """
    right = _right(module.answers(batch["image_prompt_BCYX"]), batch["looks_BN"])
    return {f"right_{look}": float(share) for look, share in right.items()}


def _right(answers: dict[str, Tensor], looks_BN: Tensor) -> dict[str, Tensor]:
    return {
        look: (answer.detach().argmax(1) == looks_BN[:, n]).float().mean()
        for n, (look, answer) in enumerate(answers.items())
    }


def look_batch(
    seed: int,
    number: int,
    *,
    num_images: int,
    image_prompt_px: int,
    size_px: int = 128,
    held_out: bool = False,
) -> Batch:
    """Draw one batch of pictures and what they show.

    Args:
        seed: Which endless source.
        number: Which batch; batches share no clips.
        num_images: Pictures in it.
        image_prompt_px: Side of the encoder's input.
        size_px: Side at which pictures are drawn.
        held_out: Draw the combinations kept from training.

    Returns:
        ``image_prompt_BCYX`` and ``looks_BN``: int64, places in :data:`LOOKS`.
    """
    pictures, looks = [], []
    for clip, rng in picture_clips(
        seed, number, num_images=num_images, size_px=size_px, held_out=held_out
    ):
        is_frame = bool(rng.random() < FRAME_SHARE)
        pictures.append(clip.frames_TYXC[0] if is_frame else clip.reference_YXC)
        shown = looks_of(clip, is_frame=is_frame)
        looks.append([values.index(shown[look]) for look, values in LOOKS.items()])
    return {
        "image_prompt_BCYX": image_prompt_pixels(pictures, image_prompt_px),
        "looks_BN": torch.tensor(looks),
    }


def looks_of(clip: Clip, *, is_frame: bool) -> dict[str, str]:
    """What a clip's frame, or else its portrait, shows.

    Args:
        clip: Drawn.
        is_frame: Whether the picture is a frame: a portrait has another framing and no scene.

    Returns:
        A value for every key of :data:`LOOKS`.
    """
    known = clip.attributes
    framing = known.framing if is_frame else clip.reference_framing
    below = framing != "portrait"
    return {
        "skin": known.skin,
        "hair_color": UNSEEN if known.hair_style == "bald" else known.hair_color,
        "hair_style": known.hair_style,
        "shirt_color": known.shirt_color,
        "shirt_shape": known.shirt_shape,
        "trousers_color": known.trousers_color if below else UNSEEN,
        "trousers_shape": known.trousers_shape if below else UNSEEN,
        "scene": known.scene if is_frame else UNSEEN,
    }
