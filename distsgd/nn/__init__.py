"""Models: layers, losses, initializers and the objective that training minimizes."""
