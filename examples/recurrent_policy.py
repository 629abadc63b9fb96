"""Reinforcement learning with memory: rollouts that cross the ends of episodes, and `resets=` where new ones begin."""

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

import torchlstm

STEPS, GAMES, HIDDEN, DISCOUNT = 32, 64, 24, 0.9


class Corridor:
    """Games side by side: a cue, left or right, is seen at the first step; some steps later comes a junction.

    What is done at the junction ends the episode: the cue's own way brings 1, the other -1.
    """

    def __init__(self) -> None:
        self.cue, self.left = torch.zeros(2, GAMES, dtype=torch.int64)
        self.begin(torch.ones(GAMES, dtype=torch.bool))

    def begin(self, new: Tensor) -> None:
        """Draw new episodes where `new` (GAMES,) says so."""
        self.new = new
        self.cue = torch.where(new, torch.randint(2, (GAMES,)), self.cue)
        self.left = torch.where(new, torch.randint(2, 8, (GAMES,)), self.left)

    def look(self) -> Tensor:
        """(GAMES, 3): the cue as +1 or -1 at the first step only, whether this is the junction, and one."""
        return torch.stack([self.new * (2 * self.cue - 1), self.left == 0, torch.ones(GAMES)], 1)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """The reward and whether the episode is over; a new one has then begun."""
        over = self.left == 0
        reward = over * (2.0 * (action == self.cue) - 1)
        self.left = self.left - 1
        self.begin(over)
        return reward, over


def train(memory: bool, updates: int = 80) -> float:
    """Advantage actor-critic; returns how often the last episodes ended well.

    memory  False: the state restarts before every step, all else being equal
    """
    torch.manual_seed(1)
    lstm, head = torchlstm.LSTM(3, HIDDEN), nn.Linear(HIDDEN, 3)  # two actions, and the value
    optimizer = torch.optim.Adam([*lstm.parameters(), *head.parameters()], lr=0.01)
    games, stream, new = Corridor(), torchlstm.Stream(lstm), torch.zeros(GAMES, dtype=torch.bool)
    won = []
    for _ in range(updates):
        # Act, one step at a time; the rollout begins and ends somewhere in the middle of episodes.
        state, seen, done = stream.state, [], []
        for _ in range(STEPS):
            stream.reset(rows=new)
            look = games.look()
            with torch.no_grad():
                logits = head(stream(look.unsqueeze(0))[0])[:, :2]
            action = Categorical(logits=logits).sample()
            reward, over = games.step(action)
            seen.append((look, new, action, reward))
            done.append(over)
            new = over if memory else torch.ones_like(over)
        looks, resets, actions, rewards = (torch.stack(each) for each in zip(*seen, strict=True))
        over = torch.stack(done)  # (STEPS, GAMES)

        # Learn, all steps in one call: it computes what the stream has computed, and gradients stay in their episode.
        output, after = lstm(looks, state, resets=resets)
        logits, values = head(output).split((2, 1), -1)
        values = values.squeeze(-1)
        with torch.no_grad():
            last = lstm(games.look().unsqueeze(0), after, resets=new.unsqueeze(0))[0]
            target, targets = head(last)[0, :, 2], []
            for reward, ends in zip(rewards.flip(0), over.flip(0), strict=True):
                target = reward + DISCOUNT * ~ends * target
                targets.append(target)
        advantages = torch.stack(targets[::-1]) - values
        policy = Categorical(logits=logits)
        gain = policy.log_prob(actions) * advantages.detach() + 0.01 * policy.entropy()
        loss = advantages.square().mean() - gain.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        won.append((rewards[over] > 0).float().mean().item())
    return sum(won[-20:]) / 20


def main() -> None:
    """Train with and without memory."""
    for memory in (True, False):
        print(f"{'with' if memory else 'without'} memory: {train(memory):.0%} of the episodes end well")


if __name__ == "__main__":
    main()
