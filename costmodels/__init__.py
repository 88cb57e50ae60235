"""What things cost: time, memory, energy of operators, collectives, steps and requests."""
