"""The gate before the stopwatch: a workload is timed only if torchlstm computes on it what nn.LSTM computes."""

import torch

from torchlstm import EngineRefusal
from torchlstm.parity import Verdict, judge
from torchlstm.parity.observe import Observation, build, observe
from torchlstm.parity.run import tf32_allowed

from .calls import kinds_of, results
from .unfit import first_line
from .workloads import Workload


def judge_workload(workload: Workload, device: str) -> list[Verdict]:
    """Judge results and gradients of a training step, and results in eval mode, by the parity package's rule.

    Raises EngineRefusal where a forced engine does not run the workload.
    """
    case, inputs = workload.case, workload.inputs()
    place = torch.device(device)

    def see(who: bool, dtype: torch.dtype) -> Observation:
        module = build(case, *kinds_of(workload, who), dtype).to(place)
        seen = observe(module, case, inputs.to(place, dtype))
        # Without a backward to save for, an engine may take another path.
        for name, tensor in results(module, inputs.to(place, dtype)).items():
            seen[f"{name} without gradients"] = tensor
        return seen

    ours = see(True, case.dtype)
    truth = see(False, torch.float64)
    try:
        rival = see(False, case.dtype)
    except RuntimeError:  # oneDNN has no half precision on some processors: float64 alone judges then
        rival = None
    return judge(ours, rival, truth, case.dtype, device != "cpu" and tf32_allowed("matmul" if case.cell else "rnn"))


def outcome(workload: Workload, device: str) -> tuple[str, str]:
    """Return "measured", "red" or "refused", with the reason or the tensor closest to its bound."""
    try:
        verdicts = judge_workload(workload, device)
    except EngineRefusal as refusal:
        return "refused", str(refusal)
    except Exception as error:  # a crash on one workload is that workload's failure
        return "red", first_line(error)
    worst = max(verdicts, key=lambda verdict: (verdict.reason is not None, verdict.used))
    if worst.reason is not None:
        return "red", f"{worst.name}: {worst.reason}"
    return "measured", f"{worst.name}: {worst.used:.0%} of the bound"
