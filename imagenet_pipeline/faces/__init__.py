"""Faces in pictures, videos and before cameras: found, classified, drawn, written down."""

import os

# What FFmpeg would say on stderr of a damaged video is said in one line. It asks once, at its first use.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
