"""What authors of Dagster projects use: campaigns, the resource and the sensors."""
