"""Strategies for training a multimodal network, in one loop: modulation, its competitors, and controls."""

from stemma.multimodal.strategies.agm import Agm
from stemma.multimodal.strategies.gradient_blending import GradientBlending
from stemma.multimodal.strategies.joint import Joint
from stemma.multimodal.strategies.modality_dropout import ModalityDropout
from stemma.multimodal.strategies.mses import Mses
from stemma.multimodal.strategies.mslr import Mslr
from stemma.multimodal.strategies.ogm import Ogm, OgmGe
from stemma.multimodal.strategies.rates import EncoderRates
from stemma.multimodal.strategies.single import Single
from stemma.multimodal.strategies.unimodal_losses import UnimodalLosses

ALL = (Joint, Agm, Ogm, OgmGe, Mslr, Mses, GradientBlending, EncoderRates, Single, UnimodalLosses, ModalityDropout)
"""Every strategy."""
