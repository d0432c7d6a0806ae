"""The web application: Label Studio's ML protocol, webhooks, the API and the dashboard."""
