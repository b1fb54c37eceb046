"""Systems of the courses that are no classification: detection, style transfer, GANs. Nothing else imports them.

python -m imagenet_pipeline.extras.detection --help
python -m imagenet_pipeline.extras.style --help
python -m imagenet_pipeline.extras.gan --help
"""
