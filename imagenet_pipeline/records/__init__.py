"""Records: RecordIO files with checksums, lists, class tables, manifests, and the building of them."""
