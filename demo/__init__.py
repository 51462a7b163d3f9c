"""This deployment on one machine: a sandbox that plays the services, and the outage drill."""
