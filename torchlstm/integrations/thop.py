"""Once this is imported, `thop.profile` counts LSTM and LSTMCell by its own rules for nn.LSTM and nn.LSTMCell.

Examples:
    >>> import thop, torch, torchlstm
    >>> import torchlstm.integrations.thop
    >>> model = torch.nn.Sequential(torchlstm.LSTM(8, 16))
    >>> macs, parameters = thop.profile(model, inputs=(torch.randn(10, 4, 8),), verbose=False)
    >>> int(parameters)
    1664
"""

from thop.profile import register_hooks

from .as_nn import rules

register_hooks.update(rules(register_hooks))
