"""From samples of one machine to coefficients of its own."""
