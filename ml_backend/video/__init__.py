"""Video files: probing, decoding, encoding, transcoding, audio."""
