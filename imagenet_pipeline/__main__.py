from imagenet_pipeline.cli import main

main()
