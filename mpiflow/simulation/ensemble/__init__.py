"""Systems that are whole on a rank made to run: chains, mean fields, prey and predators."""
