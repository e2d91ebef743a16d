"""Pictures and videos as arrays, and back: the only place that opens media files.

Pictures live in :mod:`musev.media.images`, videos in :mod:`musev.media.video`, the joining of
segments in :mod:`musev.media.join`.
"""

from musev.media.images import encode_png, fit_image, read_image
from musev.media.join import join_segments
from musev.media.video import VideoInfo, probe_video, read_video, write_segment

__all__ = [
    "VideoInfo",
    "encode_png",
    "fit_image",
    "join_segments",
    "probe_video",
    "read_image",
    "read_video",
    "write_segment",
]
