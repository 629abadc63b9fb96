"""The path of a call: inputs become packed rows, layers run on them, and results get the form of the input."""
