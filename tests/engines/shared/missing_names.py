"""What is tried with a torch that lacks one of the names of `torch_private`: a program for each.  No tests."""

# What every program begins with: it has torch, torchlstm, and NAME, the name that is missing, as a pattern.
PREAMBLE = """
import re
from torch import nn
from torchlstm.call import native
from torchlstm.engines.shared import torch_private

torch.manual_seed(0)
torch.set_num_threads(1)
theirs, ours, x = nn.LSTM(3, 4), torchlstm.LSTM(3, 4), torch.randn(6, 2, 3, requires_grad=True)
ours.load_state_dict(theirs.state_dict())
kernel = torchlstm.engines()["cpu"] is None
close = torch.testing.assert_close

def step(module, x, **options):
    output, (h, c) = module(x, **options)
    wanted = [x, *module.parameters()]
    return [output, h, c, *torch.autograd.grad(output.sum() + (h * c).sum(), wanted)]

def right(in_c, engine="cpu"):
    "The numbers of torch.nn, in training and without gradients; whether a call goes to C, and which engine runs."
    close(step(ours, x), step(theirs, x))
    with torch.no_grad():
        close(ours(x), theirs(x))
        found = native._connected and native._kernel.lstm(ours, x, None, native._apply) is not None
    if kernel:
        assert bool(found) is in_c, found
        assert torchlstm.explain(ours, x).decisions[0].engine == engine

def raises(kind, text, call, *arguments):
    try:
        call(*arguments)
    except kind as error:
        assert re.search(text, str(error)), error
    else:
        raise AssertionError("nothing was raised")
"""

_TRACED_STACK = """
right(True)
stack = torchlstm.stack_cells(nn.LSTMCell, 3, 4)
assert stack(x)[0].shape == (6, 2, 4)
raises(RuntimeError, NAME, lambda: torch.jit.trace(stack, (x.detach(),)))
"""
# Torch's own operations want these: they are missing in our call alone.
_SEQLEN = """
right(True)
from torch.nested._internal.nested_tensor import NestedTensor
jagged = torch.nested.nested_tensor([torch.randn(3, 3), torch.randn(5, 3)], layout=torch.jagged)
last = NAME.rpartition(".")[2]
kept = getattr(NestedTensor, last)
delattr(NestedTensor, last)
output = ours(jagged)[0]
setattr(NestedTensor, last, kept)
for one, each in zip(jagged.unbind(), output.unbind()):
    close(each, theirs(one)[0])
assert output.to_padded_tensor(0.0).shape == (2, 5, 4)
"""
_LAZY = """
right(False)
lazy = torchlstm.LazyLSTM(4)
"""

# By name: the program.  It fails where an assertion does.
PROGRAMS = {
    "torch._C.__file__": """
right(True)
torch.set_num_threads(2)
close(ours(x)[0], theirs(x)[0])
""",
    "torch.Tensor._backward_hooks": """
right(True)
ours.weight_hh_l0.register_hook(lambda gradient: gradient)
assert torchlstm.plan_freeze(ours)[0].reason is None
theirs.weight_hh_l0.register_post_accumulate_grad_hook(lambda weight: None)
assert "has hooks" in torchlstm.plan_freeze(theirs)[0].reason
""",
    "torch.Tensor._post_accumulate_grad_hooks": """
right(True)
ours.weight_hh_l0.register_post_accumulate_grad_hook(lambda weight: None)
assert torchlstm.plan_freeze(ours)[0].reason is None
theirs.weight_hh_l0.register_hook(lambda gradient: gradient)
assert "has hooks" in torchlstm.plan_freeze(theirs)[0].reason
""",
    "torch._C._is_tracing": """
right(True)
traced = torch.jit.trace(ours, (x.detach(),))
longer = torch.randn(9, 2, 3)
close(traced(longer), theirs(longer))
""",
    "torch._C._functorch.peek_interpreter_stack": """
right(False)
many = torch.randn(5, 6, 2, 3)
close(torch.func.vmap(lambda each: ours(each)[0])(many), torch.stack([theirs(each)[0] for each in many]))
close(torch.func.grad(lambda x: ours(x)[0].sum())(x), torch.autograd.grad(theirs(x)[0].sum(), x)[0])
output = ours(x)[0]
output.mul_(2)
close(output, 2 * theirs(x)[0])
""",
    "torch.compiler._is_exporting_flag": """
right(True)
program = torch.export.export(ours, (x.detach(),))
close(program.module()(x.detach())[0], theirs(x)[0])
""",
    "torch._C._functorch.is_batchedtensor": """
right(True)
raises(RuntimeError, "vmap", torch.func.vmap(lambda n: ours(x, lengths=n)[0]), torch.tensor([[3, 6], [2, 2]]))
close(ours(x, lengths=torch.tensor([3, 6]))[0][:3], theirs(x)[0][:3])
""",
    "torch._dynamo.decorators.justknobs_check._dynamo_marked_constant": """
right(False)
assert torch._dynamo.decorators.justknobs_check._dynamo_marked_constant_as_it_is_called_now
with torch.no_grad():
    close(torch.compile(ours, backend="eager")(x)[0], theirs(x)[0])
""",
    "torch._functorch.pyfunctorch.temporarily_clear_interpreter_stack": """
right(True)
many = torch.randn(5, 6, 2, 3)
true = torch.stack([theirs(each)[0] for each in many])
for ours in (torchlstm.freeze(ours), torchlstm.freeze(torchlstm.thaw(ours))):
    with torch.no_grad():
        close(torch.func.vmap(lambda each: ours(each)[0])(many), true)
        close(ours(many[0])[0], true[0])
""",
    "torch.utils._python_dispatch._disable_current_modes": """
right(True)
from torch.utils._python_dispatch import TorchDispatchMode
class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))
frozen = torchlstm.freeze(ours)
with Seen(), torch.no_grad():
    output = frozen(x)[0]
close(output, theirs(x)[0])
with torch.no_grad():
    close(frozen(x)[0], theirs(x)[0])
""",
    "torch._C._len_torch_dispatch_stack": """
right(False)
from torch.utils._python_dispatch import TorchDispatchMode
class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        names.append(function.name())
        return function(*args, **(kwargs or {}))
names = []
with Seen():
    output = ours(x)[0]
close(output, theirs(x)[0])
assert not kernel or "torchlstm::lstm" in names
""",
    "torch._C._len_torch_function_stack": """
right(True)
class Seen(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        seen.append(function)
        return function(*args, **(kwargs or {}))
seen = []
with Seen():
    output = ours(x)[0]
    assert not kernel or native._kernel.lstm(ours, x, None, native._apply) is None
close(output, theirs(x)[0])
assert len(seen) > 3
""",
    "torch._C._is_any_autocast_enabled": """
right(False)
with torch.autocast("cpu", torch.bfloat16):
    output = ours(x)[0]
    assert output.dtype == theirs(x)[0].dtype == torch.bfloat16
close(output.float(), theirs(x)[0], rtol=0.02, atol=0.02)
""",
    "torch._C._has_storage": """
right(True)
def pulls(module):
    output, eye = module(x)[0], torch.eye(48).view(48, 6, 2, 4)
    return torch.autograd.grad(output, [x, *module.parameters()], eye, is_grads_batched=True)
def one_by_one(module):
    output, eye = module(x)[0], torch.eye(48).view(48, 6, 2, 4)
    each = [torch.autograd.grad(output, [x, *module.parameters()], one, retain_graph=True) for one in eye]
    return tuple(map(torch.stack, zip(*each)))
close(pulls(ours), one_by_one(theirs))
""",
    "torch._C._get_tracing_state": _TRACED_STACK,
    "torch._C._set_tracing_state": _TRACED_STACK,
    "torch._C._current_graph_task_id": """
right(True)
raises(RuntimeError, NAME, torch_private.current_graph_task_id)
""",
    "torch._check": """
right(True)
packed = nn.utils.rnn.pack_padded_sequence(x.detach(), [6, 4])
program = torch.export.export(ours, (packed,))
close(program.module()(packed)[0].data, theirs(packed)[0].data)
""",
    "torch._subclasses.fake_tensor.FakeTensor": """
right(True)
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode(allow_non_fake_inputs=True) as mode:
    fake = mode.from_tensor(x.detach())
    output, (h, c) = ours(fake)
    assert (output.shape, h.shape) == ((6, 2, 4), (1, 2, 4))
""",
    "torch.autograd.forward_ad._current_level": """
right(False)
ad, y = torch.autograd.forward_ad, x.detach()
pull, weight = torch.randn_like(y), torch.randn(6, 2, 4)
true = (torch.autograd.grad((theirs(x)[0] * weight).sum(), x)[0] * pull).sum()
checkpointed = torchlstm.LSTM(3, 4, checkpoint_every=2)
checkpointed.load_state_dict(ours.state_dict())
for module in (ours, checkpointed):
    with ad.dual_level():
        close((ad.unpack_dual(module(ad.make_dual(y, pull))[0]).tangent * weight).sum(), true)
    close((torch.func.jvp(lambda x: module(x)[0], (y,), (pull,))[1] * weight).sum(), true)
close(torch.func.vmap(lambda x: ours(x)[0], 1, 1)(x.unsqueeze(2))[:, :, 0], theirs(x)[0])
one = torch.ones(1)
by_scale = lambda scale: ours(y * scale)[0]
inner = lambda scale: torch.func.jvp(lambda other: by_scale(scale) * other, (one,), (one,))[1]
close(torch.func.jvp(inner, (one,), (one,))[1], torch.func.jvp(by_scale, (one,), (one,))[1])
""",
    "torch.autograd.profiler._is_profiler_enabled": """
right(False)
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
    ours(x)
assert any(event.key.startswith("torchlstm::layer ") for event in profile.key_averages())
""",
    "torch.cuda._sleep": """
right(True)
raises(RuntimeError, NAME, torch_private.sleep, 1000)
""",
    "torch.nn.Module._apply": _LAZY + """
assert lazy.double()(x.double())[0].dtype == torch.float64
""",
    "torch.nn.Module._buffers": """
right(False)
class Scaled(nn.LSTMCell):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.register_buffer("scale", torch.tensor(2.0))
    def forward(self, x, hx):
        return super().forward(x * self.scale, hx)
stack = torchlstm.stack_cells(Scaled, 3, 4)
assert stack(x)[0].shape == (6, 2, 4)
raises(RuntimeError, "torch.nn.Module._(buffers|parameters)", torch.jit.trace, stack, (x.detach(),))
""",
    "torch.nn.Module._parameters": """
right(False)
cell = nn.LSTMCell(3, 4)
own = torchlstm.LSTMCell(3, 4)
own.load_state_dict(cell.state_dict())
close(own(x[0]), cell(x[0]))
raises(RuntimeError, NAME, torch.jit.trace, torchlstm.stack_cells(nn.LSTMCell, 3, 4), (x.detach(),))
""",
    "torch.nn.RNNBase._init_flat_weights": _LAZY + """
lazy.load_state_dict(theirs.state_dict())
close(lazy(x), theirs(x))
close(step(lazy.double(), x.double()), step(theirs.double(), x.double()))
""",
    "torch.nn.modules.lazy.LazyModuleMixin._infer_parameters": _LAZY + """
raises(RuntimeError, NAME, lazy.trace, x)
""",
    "torch.nn.modules.lazy.LazyModuleMixin._lazy_load_hook": _LAZY + """
lazy.load_state_dict(theirs.state_dict())
close(lazy(x), theirs(x))
assert type(lazy) is torchlstm.LSTM
""",
    "torch.nested._internal.nested_tensor.NestedTensor._maybe_max_seqlen": _SEQLEN,
    "torch.nested._internal.nested_tensor.NestedTensor._maybe_min_seqlen": _SEQLEN,
    "torch.nested._internal.nested_tensor.NestedTensor._ragged_idx": """
right(False)
jagged = torch.nested.nested_tensor([torch.randn(3, 3), torch.randn(5, 3)], layout=torch.jagged)
raises(RuntimeError, NAME, ours, jagged)
""",
    "torch.ops.aten._unsafe_view": """
right(True)
native._connected = False
close(step(ours, x), step(theirs, x))
output = ours(x)[0]
output.mul_(2)
close(output, 2 * theirs(x)[0])
ours(x)[0].detach_()  # which views refuse
many = torch.randn(5, 6, 2, 3)
close(torch.func.vmap(lambda each: ours(each)[0])(many), torch.stack([theirs(each)[0] for each in many]))
""",
    "torch.overrides.has_torch_function_unary": """
right(True)
class Seen(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        seen.append(getattr(function, "__name__", ""))
        return super().__torch_function__(function, types, args, kwargs)
seen = []
close(ours(x.detach().as_subclass(Seen))[0].as_subclass(torch.Tensor), theirs(x)[0])
assert seen.count("forward") == 1
""",
    "torch.utils._pytree": """
right(True)
from torchlstm.parity import check
raises(RuntimeError, NAME, check, nn.Sequential(nn.LSTM(3, 4)), x.detach())
""",
    "torch.Tensor.__dlpack_c_exchange_api__": """
assert not kernel
assert re.search(NAME + "|extension was not compiled", torchlstm.engines()["cpu"])
right(False)
""",
    "torch.Tensor._version": """
right(True)
for in_c in (True, False):
    native._connected = in_c and native._connected
    output = ours(x)[0]
    first, = torch.autograd.grad(output.sum(), x, create_graph=True)
    second, = torch.autograd.grad(first.square().sum(), ours.weight_ih_l0)
    output = theirs(x)[0]
    first, = torch.autograd.grad(output.sum(), x, create_graph=True)
    close(second, torch.autograd.grad(first.square().sum(), theirs.weight_ih_l0)[0])
    output = ours(x)[0]
    with torch.no_grad():
        ours.bias_ih_l0.add_(1)
    raises(RuntimeError, "modified by an inplace operation", output.sum().backward)
    with torch.no_grad():
        ours.bias_ih_l0.sub_(1)
""",
}  # fmt: skip
