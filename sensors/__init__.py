"""This deployment's sensors."""
