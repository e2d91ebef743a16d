"""Pictures and videos as arrays, and back: the only place that opens media files.

Pictures live in :mod:`musev.media.images`, videos in :mod:`musev.media.video`, the joining of
segments in :mod:`musev.media.join`, frames in any order in :mod:`musev.media.frame_store`, other
frame rates in :mod:`musev.media.resample`.
"""

from musev.media.frame_store import FrameStore
from musev.media.images import encode_png, fit_image, read_image
from musev.media.join import join_segments
from musev.media.resample import count_resampled, resample_frames
from musev.media.video import VideoInfo, probe_video, read_video, scan_video, write_segment

__all__ = [
    "FrameStore",
    "VideoInfo",
    "count_resampled",
    "encode_png",
    "fit_image",
    "join_segments",
    "probe_video",
    "read_image",
    "read_video",
    "resample_frames",
    "scan_video",
    "write_segment",
]
