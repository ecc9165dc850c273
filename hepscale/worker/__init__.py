"""What runs on a worker. Standard library and its siblings only: it is shipped as it stands."""
