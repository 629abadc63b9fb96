"""The benchmark suite: torchlstm against torch.nn.LSTM and others, `python -m benchmarks` in the repository's root."""
