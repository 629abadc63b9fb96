"""Once this is imported, `thop.profile` counts LSTM and LSTMCell by its own rules for nn.LSTM and nn.LSTMCell.

>>> import torchlstm.integrations.thop
>>> macs, parameters = thop.profile(model, inputs=(x,))
"""

from thop.profile import register_hooks

from .as_nn import rules

register_hooks.update(rules(register_hooks))
