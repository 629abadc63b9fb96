"""One small file for each library that must be told about torchlstm; the rest of the package imports none of them."""
