"""One short builder per kind of source: each turns metadata into a `Plan` to build."""
