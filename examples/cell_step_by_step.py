"""LSTM takes the whole sequence, LSTMCell one step at a time: for when the next input depends on this output."""

import torch

import torchlstm


def main() -> None:
    """The same weights both ways give the same numbers; then a loop that only a cell can do."""
    torch.manual_seed(666)
    lstm = torchlstm.LSTM(3, 4)
    cell = torchlstm.LSTMCell(3, 4)
    cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in lstm.state_dict().items()})

    sequence = torch.randn(5, 2, 3)  # (T, B, I)
    output, (h_n, c_n) = lstm(sequence)

    state = None
    for step, expected in zip(sequence, output, strict=True):
        h, c = state = cell(step, state)
        torch.testing.assert_close(h, expected)
    torch.testing.assert_close((h, c), (h_n[0], c_n[0]))
    print("five steps of LSTMCell equal one call of LSTM")

    # Feeding a prediction back: the next input is not known before this step is done.
    readout = torch.nn.Linear(4, 3)
    value, state = sequence[0], None
    for index in range(3):
        state = cell(value, state)
        value = readout(state[0])
        print(f"step {index}: {[round(number, 4) for number in value[0].tolist()]}")


if __name__ == "__main__":
    main()
