"""One short builder per kind of source: each turns metadata into a `Plan` for `imagenet_pipeline.records.build`."""
