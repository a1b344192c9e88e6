"""What both halves do with a torch model: find its layers, hold its head back, capture its attention."""
