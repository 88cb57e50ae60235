"""From what other programs print to a cluster with measured links, or to a node's topology."""
