"""This deployment's services, their policies, and where its data is."""
