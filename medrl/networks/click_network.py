"""A U-Net at half resolution for images with clicks."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import DynUNet
from monai.networks.utils import pixelshuffle
from torch import Tensor, nn

RARE = -2.5  # logit of the object before anything is learned: it fills a small part of an image


class ClickNet(nn.Module):
    """MONAI's DynUNet that begins at half resolution and answers 2^d nodes a place, so that outlines stay sharp.

    ``forward`` takes (B, in_channels, *S) with sides that are multiples of ``multiple`` and returns logits (B, 1, *S).
    """

    def __init__(
        self,
        *,
        dims: int,
        in_channels: int = 7,
        channels: Sequence[int] = (24, 48, 96, 128),
        dropout: float = 0.0,
        norm: str = "INSTANCE",
        act: str = "LEAKYRELU",
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.dims, levels = dims, len(channels)
        self.multiple = 2 ** (levels - 1)
        self.network = DynUNet(
            spatial_dims=dims, in_channels=in_channels, out_channels=2**dims, kernel_size=[3] * levels,
            strides=[*[2] * (levels - 1), 1], upsample_kernel_size=[*[2] * (levels - 2), 1], filters=list(channels),
            dropout=dropout or None, norm_name=(norm, {"affine": True}), act_name=act, res_block=residual,
        )  # fmt: skip
        nn.init.constant_(self.network.output_block.conv.conv.bias, RARE)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the object."""
        return pixelshuffle(self.network(image), self.dims, 2)
