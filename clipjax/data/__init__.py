"""From records to batches: sources, decoding, augmentation, captions, tokenizers, the stream and the pipeline."""
