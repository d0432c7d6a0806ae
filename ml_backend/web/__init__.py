"""HTTP: the Label Studio ML protocol."""
