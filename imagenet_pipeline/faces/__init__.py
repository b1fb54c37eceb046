"""Faces in pictures, videos and before cameras: found, classified, drawn, written down."""

import os

# FFmpeg's own complaints about a damaged video stay off stderr: our message says it. It asks once, at its first use.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
