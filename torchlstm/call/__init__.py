"""The path of a call: what is given becomes packed rows, layers run on them, results take the form that came."""
