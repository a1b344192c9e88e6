"""What both halves do to a torch model: find its layers, hold its head back, look at its attention."""
