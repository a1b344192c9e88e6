"""What is looked at in a student during a forward pass, and how."""
