"""Children of a fork: OpenMP's threads are gone there, and whoever asks for them waits for ever."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import torchlstm

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

# One child for every form of a call: each has to be the first.  A child that hangs is ended by an alarm.
PROGRAM = """
import multiprocessing, os, signal, sys, torch, torchlstm
from torch.nn.utils.rnn import pack_padded_sequence

torch.set_num_threads(2)
T, B, I, H = 100, 64, 128, 128  # each row of 100 steps has more than 32,768 elements
torch.manual_seed(0)
x, step = torch.randn(T, B, I), torch.randn(512, I)
lengths = torch.randint(1, T + 1, (B,))
packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
resets = torch.rand(T, B) < 0.05

def lstm(**options):
    return torchlstm.LSTM(I, H, **options)

FORMS = {
    "dense": (lstm(), x, {}),
    "batch_first": (lstm(batch_first=True), x.transpose(0, 1).contiguous(), {}),
    "unbatched": (lstm(), x.flatten(0, 1)[:600], {}),
    "packed": (lstm(), packed, {}),
    "states": (lstm(), packed, {"hx": (torch.randn(1, B, H), torch.randn(1, B, H))}),
    "lengths": (lstm(), x, {"lengths": lengths}),
    "resets": (lstm(), x, {"resets": resets}),
    "bfloat16": (lstm(dtype=torch.bfloat16), x.bfloat16(), {}),
    "float16": (lstm(dtype=torch.float16), x.half(), {}),
    "float64": (lstm(dtype=torch.float64), x.double(), {}),
    "layers": (lstm(num_layers=2, bidirectional=True, dropout=1.0), x, {}),
    "projection": (lstm(proj_size=64), x, {}),
    "checkpoints": (lstm(checkpoint_every=10), x, {}),
    "cell": (torchlstm.LSTMCell(I, H), step, {}),
    "own cell": (torchlstm.stack_cells(torch.nn.LSTMCell, I, H), x[:5], {}),
    "reference": (lstm(), x[:10], {}),
}

def run(name, training):
    module, input, options = FORMS[name]
    with torchlstm.use_engine("reference" if name == "reference" else "auto"):
        if not training:
            with torch.no_grad():
                return flat(module(input, **options))
        result = flat(module(input, **options))
        return result + list(torch.autograd.grad([tensor.float().sum() for tensor in result], module.parameters()))

def flat(result):
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, torch.nn.utils.rnn.PackedSequence):
        return [result.data]
    return [tensor for part in result for tensor in flat(part)]

def right(name, training):
    got, want = run(name, training), expected[name, training]
    # Sums of gradients are as long as there are rows, and one thread sums in another order than two.
    tolerance = 2e-2 if name in ("bfloat16", "float16") else 1e-4
    return len(got) == len(want) and all(
        (a - b).abs().max() <= tolerance * (1 + b.abs().max()) for a, b in zip(got, want)
    )

def by_fork(name, training):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if right(name, training) else 3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def by_multiprocessing(name, training):
    child = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(0 if right(name, training) else 3))
    child.start()
    child.join(60)
    child.kill()
    child.join()
    return child.exitcode

ways = [by_fork] * len(FORMS)
ways[0] = by_multiprocessing
expected = {(name, training): run(name, training) for name in FORMS for training in (False, True)}
for name, way in zip(FORMS, ways):
    for training in (False, True):
        if (status := way(name, training)) != 0:
            sys.exit(f"{name} in {'training' if training else 'inference'}: {status}")
# The parent keeps its threads.
print(torch.get_num_threads(), "threads", len(expected), "calls")
"""


def _output(program: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return done.stdout + done.stderr


def test_large_inputs_of_every_form_are_answered() -> None:
    assert _output(PROGRAM) == "2 threads 32 calls\n"


THREADS = """
import os, signal, threading, torch, torchlstm
torch.set_num_threads(2)
module, x = torchlstm.LSTM(64, 128, batch_first=True).requires_grad_(False), torch.randn(64, 100, 64)
expected = module(x)[0]
seen = []

def run():
    assert torch.allclose(module(x)[0], expected, atol=1e-5)
    seen.append(torch.get_num_threads())

def in_a_thread():
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

def child(*steps):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # ends a child that hangs
        for step in steps:
            step()
        print(*seen, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)

child(run, run)
child(in_a_thread, run, in_a_thread)  # the other thread has threads of its own, the one that forked has not
child(lambda: child(run), run)
child(lambda: seen.append(torch.get_num_threads()))  # who computes no LSTM is left alone
run()
print(*seen)
"""


def test_only_the_thread_that_forked_is_held_to_one() -> None:
    assert _output(THREADS).splitlines() == ["1 1", "2 1 1", "1", "1", "2", "2"]


# All tensors are large enough for torch to ask for threads.
TRAINING = """
import os, signal, torch, torchlstm
torch.set_num_threads(2)
module, x = torchlstm.LSTM(64, 256), torch.randn(20, 64, 64)
expected = module(x)[0].square().mean().item()
if (pid := os.fork()) == 0:
    signal.alarm(60)  # ends a child that hangs
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = module(x)[0].square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    torch.set_num_threads(2)  # stays, and the engine still asks for one
    module(torch.randn(1, 1, 64))
    print(abs(losses[0] - expected) < 1e-6, losses[0] > losses[1] > losses[2], torch.get_num_threads(), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""


def test_a_training_step_with_an_optimizer() -> None:
    assert _output(TRAINING) == "True True 2\n"


# No code of a module runs in it, only the operator.
EXPORTED = """
import os, signal, torch, torchlstm
torch.set_num_threads(2)
module, x = torchlstm.LSTM(64, 128).requires_grad_(False), torch.randn(20, 4, 64)
program = torch.export.export(module, (x,)).module()
expected = program(x)[0]
if (pid := os.fork()) == 0:
    signal.alarm(60)  # ends a child that hangs
    print(torch.allclose(program(x)[0], expected, atol=1e-5), torch.get_num_threads(), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""


def test_an_exported_program_holds_itself_to_one_thread() -> None:
    assert _output(EXPORTED) == "True 1\n"


class Encoded(torch.utils.data.Dataset[Tensor]):
    """A data set that runs an LSTM in its workers."""

    def __init__(self) -> None:
        self.module = torchlstm.LSTM(8, 32).requires_grad_(False)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        output: Tensor = self.module(torch.randn(20, 8, generator=generator))[0][-1]
        return output


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_in_workers_of_a_data_loader() -> None:
    data = Encoded()
    expected = torch.stack([data[index] for index in range(8)])
    loader: Any = torch.utils.data.DataLoader(data, batch_size=4, num_workers=2, timeout=60)
    torch.testing.assert_close(torch.cat(list(loader)), expected)
