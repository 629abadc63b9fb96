"""Train on one process or on many, with the same losses.

python examples/train_distributed.py                                        one process
torchrun --nproc-per-node=2 examples/train_distributed.py                   every process holds the model (DDP)
torchrun --nproc-per-node=2 examples/train_distributed.py --shard           every process holds a part of it (FSDP2)

--save DIR and --load DIR --from N: a checkpoint of the first N updates, from any number of processes into any other.
"""

import argparse
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import torchlstm

STEPS, BATCH, FEATURES = 20, 8, 4


class Model(nn.Module):
    """Predict the sum of what has been seen so far."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torchlstm.LSTM(FEATURES, 32, num_layers=2)
        self.readout = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (T, B, FEATURES) -> (T, B, 1)."""
        prediction: Tensor = self.readout(self.lstm(x)[0])
        return prediction


def train(first: int, last: int, shard: bool, saved: str | None, loaded: str | None) -> list[float]:
    """Make updates [first, last), on the same batches however many processes there are, and return the losses."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = _device()
    torch.manual_seed(0)
    model: Any = Model().to(device)
    if shard:
        fully_shard(model.lstm)
        fully_shard(model)
    elif world > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    if loaded:
        states = get_state_dict(model, optimizer)
        load({"model": states[0], "optimizer": states[1]}, checkpoint_id=loaded)
        set_state_dict(model, optimizer, model_state_dict=states[0], optim_state_dict=states[1])

    data = torch.Generator().manual_seed(1)
    losses = []
    for update in range(last):
        x = torch.randn(STEPS, BATCH, FEATURES, generator=data)
        if update < first:
            continue
        part = x.chunk(world, dim=1)[rank].to(device)  # this process's sequences
        loss = nn.functional.mse_loss(model(part), part.sum(-1, keepdim=True).cumsum(0) / STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        if world > 1:
            dist.all_reduce(mean)
        losses.append(mean.item() / world)
    if saved:
        model_state, optimizer_state = get_state_dict(model, optimizer)
        save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=saved)
    return losses


def _device() -> torch.device:
    """This process's own GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def main() -> None:
    """Read the command line, join the other processes if there are any, train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--from", type=int, default=0, dest="first", metavar="N")
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--save", metavar="DIR")
    parser.add_argument("--load", metavar="DIR")
    given = parser.parse_args()
    device = _device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    many = "LOCAL_RANK" in os.environ
    if many:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    losses = train(given.first, given.updates, given.shard, given.save, given.load)
    if not many or dist.get_rank() == 0:
        print("losses", " ".join(f"{loss:.6f}" for loss in losses))
    if many:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
