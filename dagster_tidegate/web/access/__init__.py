"""Who may use the API and the UI, and for what."""
