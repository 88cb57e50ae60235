"""What machines are: devices, nodes, clusters and how their parts are joined."""
