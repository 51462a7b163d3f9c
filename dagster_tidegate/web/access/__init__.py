"""Who may use the API and the pages, and for what."""
