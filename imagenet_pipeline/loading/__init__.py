"""From records to batches: order, augmentation and threads that decode."""
