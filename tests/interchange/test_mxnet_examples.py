"""Graphs as MXNet users have them: its example networks (example/image-classification), written anew and narrow.

Facts of their layers are MXNet's; IMAGENET_PIPELINE_LONG=1 is not needed, since each is small.
"""
