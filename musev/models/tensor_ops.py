"""Small tensor helpers along one axis: pick, place, join and blend frames; match statistics.

Axes here: B clip, C channel, T frame, L token, D embedding width. ``dim`` is any axis but
the batch. Nothing changes its arguments (the original's ``fuse_part_tensor`` did).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from musev.errors import ShapeError

VARIANCE_FLOOR = 1e-6


def select_at_index(x: Tensor, index: Tensor, *, dim: int) -> Tensor:
    """Pick entries along ``dim``; ``index`` is ``[n]``, or ``[B, n]``: other entries per clip."""
    if index.ndim == 1:
        return x.index_select(dim, index)
    return x.gather(dim, _spread_index(index, x, dim))


def place_at_index(x: Tensor, index: Tensor, source: Tensor, *, dim: int) -> Tensor:
    """Return a copy of ``x`` with the entries at ``index`` (``[n]`` or ``[B, n]``) replaced."""
    if index.ndim == 1:
        return x.index_copy(dim, index, source)
    return x.scatter(dim, _spread_index(index, source, dim), source)


def fill_at_index(x: Tensor, index: Tensor, value: float, *, dim: int) -> Tensor:
    """Return a copy of ``x`` with the entries at ``index`` (``[n]``, ``[B, n]``) set to a value."""
    if index.ndim == 1:
        return x.index_fill(dim, index, value)
    return x.scatter(dim, _spread_index(index, x, dim), value)


def concat_at_index(
    first: Tensor, first_index: Tensor, second: Tensor, second_index: Tensor, *, dim: int
) -> Tensor:
    """Join two tensors along ``dim``, each entry at its given place; unnamed places are zero.

    Args:
        first: For example the noisy frames.
        first_index: Places of ``first``, ``[n]`` or ``[B, n]``.
        second: For example the conditioning frames.
        second_index: Places of ``second``.
        dim: The axis.

    Returns:
        A tensor as long as both together.

    Source:
        MODELS.md 1.10; upstream musev/data/data_util.py, batch_concat_two_tensor_with_index.
    """
    shape = list(first.shape)
    shape[dim] = first.shape[dim] + second.shape[dim]
    joined = place_at_index(first.new_zeros(shape), first_index, first, dim=dim)
    return place_at_index(joined, second_index, second, dim=dim)


def interleave(first: Tensor, second: Tensor, *, dim: int) -> Tensor:
    """Take entries of both tensors in turn, ``first`` first; the longer one's rest follows."""
    shared = min(first.shape[dim], second.shape[dim])
    pairs = torch.stack([first.narrow(dim, 0, shared), second.narrow(dim, 0, shared)], dim + 1)
    rests = [x.narrow(dim, shared, x.shape[dim] - shared) for x in (first, second)]
    return torch.cat([pairs.flatten(dim, dim + 1), *rests], dim=dim)


def blend_overlap(
    source_BCT: Tensor, target_BCT: Tensor, *, overlap: int, weight: float = 0.5, skip: int = 0
) -> Tensor:
    """Blend the last frames of one segment into the first frames of the next.

    Args:
        source_BCT: The earlier segment; any axes may follow T.
        target_BCT: The later segment.
        overlap: Frames to blend; 0 returns the target.
        weight: Share of the source.
        skip: Frames at the target's start that are left alone.

    Returns:
        A new tensor of the shape of ``target_BCT``.

    Source:
        MODELS.md 1.10; upstream musev/data/data_util.py, fuse_part_tensor (which works in place).
    """
    if overlap == 0:
        return target_BCT
    blended = target_BCT.clone()
    part = target_BCT[:, :, skip : skip + overlap]
    tail = source_BCT[:, :, -overlap:]
    blended[:, :, skip : skip + overlap] = weight * tail + (1 - weight) * part
    return blended


def repeat_to_length(x: Tensor, length: int, *, dim: int, num_base: int = 1) -> Tensor:
    """Bring an axis to a length: cut it, or repeat each entry consecutively.

    Args:
        x: Any tensor.
        length: Length wanted.
        dim: The axis.
        num_base: Entries to repeat where ``length`` is not a multiple of the present length.

    Returns:
        ``x`` itself, a part of it, or its entries repeated.

    Source:
        MODELS.md 1.10; upstream musev/data/data_util.py, align_repeat_tensor_single_dim.
    """
    present = x.shape[dim]
    if length <= present:
        return x.narrow(dim, 0, length)
    if length % present:
        x = x.narrow(dim, 0, num_base)
        present = num_base
    return x.repeat_interleave(length // present, dim=dim)


def match_statistics(source_BC: Tensor, target_BC: Tensor) -> Tensor:
    """Move each channel's statistics towards the target's, as the original does.

    QUIRK kept from the original: it reads ``torch.var_mean`` of the target in the wrong order, so
    the new mean is the target's variance and the new variance is the target's mean (at least 1e-6).
    No released network or pipeline uses the result; see :func:`match_frames`.

    Args:
        source_BC: What to change; all axes after B and C are averaged over.
        target_BC: Where the statistics come from; its clips are repeated to the source's.

    Returns:
        A tensor of the shape of ``source_BC``.

    Source:
        Recorded outputs (goldens fn_adaptive_instance_normalization__*); meant to be adaptive
        instance normalisation, arXiv 1703.06868, with biased variances.
    """
    target_BC = repeat_to_length(target_BC, source_BC.shape[0], dim=0)
    variance, mean = _variance_mean(source_BC)
    new_mean, new_variance = _variance_mean(target_BC)
    deviation, new_deviation = (
        x.clamp(min=VARIANCE_FLOOR).sqrt() for x in (variance, new_variance)
    )
    return (source_BC - mean) / deviation * new_deviation + new_mean


def match_statistics_guided(
    source_BC: Tensor, target_BC: Tensor, *, style_fidelity: float
) -> Tensor:
    """Match statistics, but less in the unconditional half (the first half of the batch)."""
    matched = match_statistics(source_BC, target_BC)
    kept = matched.clone()
    half = source_BC.shape[0] // 2
    kept[:half] = source_BC[:half]
    return style_fidelity * kept + (1 - style_fidelity) * matched


def match_frames(x_BCT: Tensor, source_index: Tensor, target_index: Tensor) -> Tensor:
    """Apply :func:`match_statistics` to some frames, with others of the same clip as target.

    Args:
        x_BCT: Features; any axes may follow T.
        source_index: Frames to change, ``[n]`` or ``[B, n]``.
        target_index: Frames to take the statistics from.

    Returns:
        The changed frames only, in the order of ``source_index``.
    """
    source = select_at_index(x_BCT, source_index, dim=2)
    target = select_at_index(x_BCT, target_index, dim=2)
    return match_statistics(source, target)


def position_grid_2d(
    embed_dim: int, *, width: int, height: int, max_length: int | None = None
) -> Tensor:
    """Embed the places of a grid: the first half of the width holds the row, the second the column.

    Args:
        embed_dim: Width of the embedding; a multiple of 4.
        width: Columns.
        height: Rows.
        max_length: If given, both axes are stretched to ``0..max_length``; a side of one place then
            divides by zero, as in the original.

    Returns:
        float64 ``[width * height, embed_dim]``, column by column.

    Raises:
        ShapeError: If ``embed_dim`` is not a multiple of 4.

    Source:
        MODELS.md 1.9: networks with ``need_spatial_position_emb`` compute it and never use it.
    """
    if embed_dim % 4:
        raise ShapeError(f"embed_dim must be a multiple of 4, got {embed_dim}")
    columns, rows = (torch.arange(count, dtype=torch.float64) for count in (width, height))
    if max_length is not None:
        columns = columns / (width - 1) * max_length
        rows = rows / (height - 1) * max_length
    column, row = torch.meshgrid(columns, rows, indexing="ij")
    return torch.cat([_sines(axis.flatten(), embed_dim // 2) for axis in (row, column)], dim=1)


def resize_position_grid(grid_LD: Tensor, *, width: int, height: int, scale: float) -> Tensor:
    """Resize an embedding of grid places bicubically; row-major tokens in and out."""
    maps = grid_LD.unflatten(0, (height, width)).permute(2, 0, 1)[None]
    resized = F.interpolate(maps, scale_factor=scale, mode="bicubic")
    return resized[0].permute(1, 2, 0).flatten(0, 1)


def _sines(positions: Tensor, embed_dim: int) -> Tensor:
    exponents = torch.arange(embed_dim // 2, dtype=torch.float64) / (embed_dim / 2)
    angles = positions[:, None] * (1.0 / 10000**exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _variance_mean(x_BC: Tensor) -> tuple[Tensor, Tensor]:
    axes = tuple(range(2, x_BC.ndim))
    return torch.var_mean(x_BC, dim=axes, keepdim=True, correction=0)


def _spread_index(index_BL: Tensor, like: Tensor, dim: int) -> Tensor:
    """Broadcast a per-clip index to the shape that gather and scatter want."""
    shape = [1] * like.ndim
    shape[0], shape[dim] = index_BL.shape
    target = list(like.shape)
    target[dim] = index_BL.shape[1]
    return index_BL.view(shape).expand(target)
