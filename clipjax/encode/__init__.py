"""Images, texts and regions in, embeddings out."""
