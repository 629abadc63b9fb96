"""Sequences of different lengths, packed or padded: run them in both directions and find each one's last state."""

import torch
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence, pad_sequence

import torchlstm


def main() -> None:
    """Run three sequences in one batch, and each alone; both give the same."""
    torch.manual_seed(0)
    sequences = [torch.randn(length, 8) for length in (4, 9, 6)]
    lstm = torchlstm.LSTM(8, 16, bidirectional=True)

    packed = pack_sequence(sequences, enforce_sorted=False)
    output, (h_n, _) = lstm(packed)
    padded, lengths = pad_packed_sequence(output)  # (T, B, 32), (B,)
    print(f"output {tuple(padded.shape)}, lengths {lengths.tolist()}")

    for index, sequence in enumerate(sequences):
        alone, (h_alone, _) = lstm(sequence)
        torch.testing.assert_close(padded[: len(sequence), index], alone)
        # h_n is each sequence's own last step forwards, and its first step backwards: no padding in either.
        torch.testing.assert_close(h_n[:, index], h_alone)
        print(f"sequence {index}: {len(sequence)} steps, the same in the batch and alone")

    # The same without packing: padded input, and how much of it is there.
    output, (h_padded, _) = lstm(pad_sequence(sequences), lengths=[len(sequence) for sequence in sequences])
    torch.testing.assert_close((output, h_padded), (padded, h_n))
    print("the same from padded input with lengths")


if __name__ == "__main__":
    main()
