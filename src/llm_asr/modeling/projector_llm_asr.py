"""The projectors by their names in the configuration."""

from .configuration_llm_asr import LlmAsrConfig
from .projector_base import LlmAsrProjector, ProjectorOutput
from .projector_cif import CifProjector
from .projector_conv import ConvProjector
from .projector_ctc import CtcProjector
from .projector_qformer import QFormerProjector
from .projector_stack import StackProjector


PROJECTORS: dict[str, type[LlmAsrProjector]] = {
    "conv": ConvProjector,
    "moe": ConvProjector,
    "cif": CifProjector,
    "moe_cif": CifProjector,
    "stack": StackProjector,
    "moe_stack": StackProjector,
    "qformer": QFormerProjector,
    "moe_qformer": QFormerProjector,
    "ctc": CtcProjector,
    "moe_ctc": CtcProjector,
}


def build_projector(config: LlmAsrConfig) -> LlmAsrProjector:
    """The projector that `config.projector_config.projector_type` names."""
    return PROJECTORS[config.projector_config.projector_type](config)


__all__ = ["PROJECTORS", "LlmAsrProjector", "ProjectorOutput", "build_projector"]
