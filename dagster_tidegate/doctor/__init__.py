"""Problems of a deployment, and their fixes."""
