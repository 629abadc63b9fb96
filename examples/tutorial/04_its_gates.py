"""What the trained model does while it reads: the code of 04_its_gates.md."""

import shlex
import tokenize
from itertools import accumulate
from pathlib import Path

import pictures
import torch
from torch import Tensor, nn

import torchlstm

saved = torch.load(pictures.FOLDER / "03_model.pt")
embedding = nn.Embedding.from_pretrained(saved["embedding.weight"])
lstm = torchlstm.LSTM(32, 128)
lstm.load_state_dict({name[5:]: weight for name, weight in saved.items() if name.startswith("lstm.")})

text = Path(shlex.__file__).read_text(encoding="utf-8").encode("ascii", "ignore").decode()
data = torch.tensor([saved["alphabet"].index(character) for character in text])


start = text.index("    def __next__")
end = text.index("\n", text.index("token = ", start)) + 1
with torch.no_grad():
    _, state = lstm(embedding(data[:start]))
    trace = lstm.trace(embedding(data[start:end]), state)

states = trace.layers[0][0]
lively = states.c.tanh().std(0).topk(24).indices
few = trace._replace(layers=[[type(states)(*(values[:, lively] for values in states))]])
if pictures.possible:
    figure = torchlstm.viz.gates(few, labels=pictures.readable(text[start:end]))
    pictures.save(figure, "04_gates.png", dpi=90)


def features(text: str) -> dict[str, Tensor]:
    """What is true of each character."""
    lines = text.splitlines(keepends=True)
    begins = [0, *accumulate(len(line) for line in lines)]
    found = {name: torch.zeros(len(text)) for name in ("string", "comment", "brackets", "indentation", "column")}
    for line, begin in zip(lines, begins, strict=False):
        found["column"][begin : begin + len(line)] = torch.arange(len(line)).float()
        found["indentation"][begin : begin + len(line) - len(line.lstrip(" "))] = 1
    depth = 0
    for token in tokenize.generate_tokens(iter(lines).__next__):
        first, last = (begins[row - 1] + column for row, column in (token.start, token.end))
        if token.type == tokenize.STRING:
            found["string"][first:last] = 1
        if token.type == tokenize.COMMENT:
            found["comment"][first:last] = 1
        if token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
        found["brackets"][first:] = float(depth > 0)
    return found


def correlation(units: Tensor, feature: Tensor) -> Tensor:
    """Of each unit (T, H) with a feature (T,): (H,)."""
    units, feature = units - units.mean(0), feature - feature.mean()
    found: Tensor = units.T @ feature / (units.norm(dim=0) * feature.norm() + 1e-12)
    return found


with torch.no_grad():
    states = lstm.trace(embedding(data)).layers[0][0]
memory = states.c.tanh()  # (T, H)
truth, half = features(text), len(text) // 2
best = {}
print(f"{'feature':>12} {'unit':>5} {'chosen on':>10} {'judged on':>10}")
for name, feature in truth.items():
    chosen = correlation(memory[:half], feature[:half])
    best[name] = int(chosen.abs().argmax())
    judged = correlation(memory[half:], feature[half:])
    print(f"{name:>12} {best[name]:5} {chosen[best[name]]:10.2f} {judged[best[name]]:10.2f}")

unit = memory[half:, best["indentation"]]
indentation, space = truth["indentation"][half:] > 0, data[half:] == saved["alphabet"].index(" ")
for name, where in (("indentation", indentation), ("other spaces", space & ~indentation), ("all else", ~space)):
    print(f"unit {best['indentation']} in {name}: {unit[where].mean():.2f} on average")


inside, column = truth["indentation"] > 0, truth["column"]
first, second = (torch.arange(len(text)) < half) & inside, (torch.arange(len(text)) >= half) & inside
chosen = correlation(states.c[first], column[first])
counter = int(chosen.argmax())
judged = correlation(states.c[second], column[second])
print(f"unit {counter}: {chosen[counter]:.2f} where chosen, {judged[counter]:.2f} where judged")
print("column     i     f     g      c")
line = text.index("\n", start) + 1
for t in range(line, line + 8):
    values = (states.i[t, counter], states.f[t, counter], states.g[t, counter])
    print(f"{t - line:6}", *(f"{value:5.2f}" for value in values), f"{states.c[t, counter]:6.2f}")

end = text.index("\n", text.index("raise StopIteration", start)) + 1
curves = {
    f"unit {best[name]}, tanh(c), chosen for: {name}": memory[start:end, best[name]].tolist()
    for name in ("indentation", "column")
}
curves[f"unit {counter}, c, chosen for: column inside the indentation"] = states.c[start:end, counter].tolist()
pictures.units("04_units.png", text[start:end], curves, truth["indentation"][start:end].tolist())
