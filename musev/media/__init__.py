"""Pictures and videos as arrays, and back: the only place that opens media files.

Pictures live in :mod:`musev.media.images`, videos in :mod:`musev.media.video`, the joining of
segments in :mod:`musev.media.join`, frames in any order in :mod:`musev.media.frame_store`, other
frame rates in :mod:`musev.media.resample`, frames by their times in
:mod:`musev.media.frame_times`, exact videos of control maps in :mod:`musev.media.lossless`,
animations and folders of pictures in :mod:`musev.media.exports`.
"""

from musev.media.frame_store import FrameStore
from musev.media.frame_times import FrameTimes, pick_frames, read_frames, time_frames
from musev.media.images import encode_png, fit_image, read_image
from musev.media.join import join_segments
from musev.media.lossless import write_lossless
from musev.media.resample import count_resampled, resample_frames
from musev.media.video import VideoInfo, probe_video, read_video, scan_video, write_segment

__all__ = [
    "FrameStore",
    "FrameTimes",
    "VideoInfo",
    "count_resampled",
    "encode_png",
    "fit_image",
    "join_segments",
    "pick_frames",
    "probe_video",
    "read_frames",
    "read_image",
    "read_video",
    "resample_frames",
    "scan_video",
    "time_frames",
    "write_lossless",
    "write_segment",
]
