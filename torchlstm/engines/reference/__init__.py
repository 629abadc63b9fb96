"""The reference engine: a loop over the equations in torch operations, for any device, dtype and transform."""
