"""One module for each library that needs to know torchlstm's classes; the rest of the package imports none of them."""
