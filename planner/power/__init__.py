"""Power plans: rows of servers, clocks along a pipeline, caps of a serving fleet."""
