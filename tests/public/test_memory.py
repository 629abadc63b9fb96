"""Nothing is kept from call to call: thousands of training steps and small calls in the same memory."""

import gc
import resource
import sys
import threading

import pytest
import torch

import torchlstm


def resident() -> int:
    """Bytes of memory that this process has, now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.filterwarnings("ignore:.*torch.jit")  # Inductor scripts rules of its own
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_two_thousand_steps_leak_nothing(compiled: bool) -> None:
    # What other tests compiled counts against the compiler's limit for one function.
    torch._dynamo.reset()
    module = torchlstm.LSTM(32, 64, 2, dropout=0.1, bidirectional=True)
    run = torch.compile(module, fullgraph=True) if compiled else module
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    x = torch.randn(6, 4, 32)

    def steps(count: int) -> None:
        for _ in range(count):
            output, (h_n, c_n) = run(x)
            optimizer.zero_grad()
            (output.sum() + h_n.sum() + c_n.sum()).backward()
            optimizer.step()

    steps(200)  # allocators, caches, the compiler
    gc.collect()
    before = resident()
    steps(1_800)
    gc.collect()
    # One kept gradient of w_ih a step would be 115 MB.
    assert resident() - before < 8 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_results_of_small_calls_are_given_back() -> None:
    cell, x = torchlstm.LSTMCell(2, 3), torch.randn(5_000, 2)

    def run() -> None:
        with torch.no_grad():
            for _ in range(1_000):
                cell(x)

    run()
    before = resident()
    run()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    # 240 MB were made.
    assert resident() - before < 8 << 20
