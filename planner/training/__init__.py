"""Training plans: the request, the space of strategies, the search, placement and uneven clusters."""
