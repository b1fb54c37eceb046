"""The data loader: order of records, augmentation, and threads that decode."""
