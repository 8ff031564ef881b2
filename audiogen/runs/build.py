"""Build models from configs."""

from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..config import part_to_dict
from ..errors import ConfigError
from ..models.backbones import BACKBONES
from ..models.conditioning import CONDITIONS, Conditioner, Text
from ..models.patterns import PATTERNS
from ..models.sequence_model import SequenceModel
from ..spec import Spec
from .config import RunConfig


def build_model(config: RunConfig, spec: Spec) -> SequenceModel:
    """Build a new model for a front-end's spec; its initial weights depend on torch's seed.

    Raises:
        ConfigError: parts do not fit each other, or the backbone can't be built with its settings.
    """
    kind = part_to_dict(config.backbone, BACKBONES)["kind"]
    try:
        backbone = BACKBONES[kind](config.backbone)
        conditioner = build_conditioner(config, backbone.dim) if config.conditions else None
        pattern = PATTERNS[config.pattern](spec.num_rows)
        return SequenceModel(spec, backbone, pattern, conditioner, config.head)
    except (ValueError, RuntimeError) as error:  # from torch: a value out of range, or too large for memory
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"backbone: this {kind} can't be built ({reason}); choose other settings") from error


def build_conditioner(config: RunConfig, dim: int) -> Conditioner:
    """Build the conditions of a run for a hidden of `dim`, with weights of zero."""
    parts = {}
    for name, part in config.conditions.items():
        kind = part_to_dict(part, CONDITIONS)["kind"]
        parts[name] = CONDITIONS[kind](part, dim)
    if getattr(config.backbone, "cross_attention", False):
        texts = [part for part in parts.values() if isinstance(part, Text)]
        if len(texts) != 1:
            raise ConfigError(f"backbone.cross_attention: needs one text among the conditions, not {len(texts)}")
        texts[0].serve(config.backbone.num_layers)
    return Conditioner(parts)


def blank_model(config: RunConfig, spec: Spec) -> SequenceModel:
    """Build the same model with uninitialised weights, whose memory is not touched, whatever size the config claims."""
    with _Uninitialised():
        return build_model(config, spec)


class _Uninitialised(TorchFunctionMode):
    """Skip the initialisation of weights. The meta device would do too, but importing it takes seconds."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (Tensor.normal_, Tensor.uniform_) or getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
