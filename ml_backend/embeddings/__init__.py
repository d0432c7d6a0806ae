"""Image embeddings: DINOv2, CLIP and EfficientNet, and the crops of tracks that they embed."""
