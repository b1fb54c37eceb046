"""Faces in pictures, videos and before cameras: found, classified, drawn, written down."""
