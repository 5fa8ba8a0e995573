"""SAM put together from segment-anything's own parts: the official sizes and the small one, all numbers in one place.

Sources: Kirillov et al., "Segment Anything" (2023), and the sizes of its published checkpoints (vit_b, vit_l, vit_h).
MedSAM's checkpoint has vit_b's sizes, and another scale of its input (`of_unit_scale`). `small` has the same parts at 96
pixels and is trained by `simulation/pretrain_sam.py`: fine patches and a narrow decoder place an edge better than coarse
patches and a wide one at the same cost, and what windows of attention don't see of each other the decoder's tokens carry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import strategies.torchvision_ops  # noqa: F401  (before segment-anything, which imports torchvision)

from segment_anything.modeling.image_encoder import ImageEncoderViT  # isort: skip
from segment_anything.modeling.mask_decoder import MaskDecoder  # isort: skip
from segment_anything.modeling.prompt_encoder import PromptEncoder  # isort: skip
from segment_anything.modeling.transformer import Attention, TwoWayTransformer  # isort: skip


@dataclass(frozen=True)
class Size:
    """The numbers that make one SAM.

    Attributes:
        input_px: side of the square image that the encoder takes.
        patch_px: side of a patch; the embedding has `input_px // patch_px` rows and columns.
        dim, depth, heads: of the image encoder's transformer.
        window: side of the windows of local attention in patches, 0 for none; `global_blocks` attend to everything.
        prompt_dim: channels of the embedding, and of everything in the decoder.
        mask_channels: hidden channels where a mask is a prompt.
        decoder_heads: of the mask decoder's transformer, whose attention is half as wide as `prompt_dim`.
        refines: a box without a mask prompt also brings the ellipse in it as one, and what the decoder says is added to the
            logits of the mask prompt: it learns what the picture changes, not where the box is. Published weights were
            trained without either.
        decoder_mlp, iou_hidden: hidden units in the mask decoder's transformer and in its IoU head.
    """

    input_px: int
    patch_px: int
    dim: int
    depth: int
    heads: int
    window: int
    global_blocks: tuple[int, ...]
    prompt_dim: int
    mask_channels: int
    decoder_heads: int
    refines: bool
    decoder_mlp: int
    iou_hidden: int

    @property
    def grid(self) -> int:
        """Rows, and columns, of the embedding."""
        return self.input_px // self.patch_px


def _official(dim: int, depth: int, heads: int, global_blocks: tuple[int, ...]) -> Size:
    return Size(
        input_px=1024,
        patch_px=16,
        dim=dim,
        depth=depth,
        heads=heads,
        window=14,
        global_blocks=global_blocks,
        prompt_dim=256,
        mask_channels=16,
        decoder_heads=8,
        refines=False,
        decoder_mlp=2048,
        iou_hidden=256,
    )


SIZES: dict[str, Size] = {
    "vit_b": _official(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": _official(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": _official(1280, 32, 16, (7, 15, 23, 31)),
    "small": Size(
        input_px=96,
        patch_px=4,
        dim=96,
        depth=4,
        heads=4,
        window=12,
        global_blocks=(2,),
        prompt_dim=64,
        mask_channels=32,
        decoder_heads=4,
        refines=True,
        decoder_mlp=256,
        iou_hidden=96,
    ),
}

PICTURE_WEIGHT = 0.4
OUTSIDE_PER_PX = 1.0
"""How an answer to a box, with clicks or without, is tempered where a SAM refines: the decoder's part counts by this much, and
logits fall by so much for each pixel of the encoder's input outside of the box. Synthetic scenes make a decoder surer of
what it sees than patients' images warrant. Both numbers were chosen by the Dice on every sixth case of ACDC, hippocampus
and STS (`benchmarks/sam_quality.py --every 6`); a mask prompt is refined as far as the decoder says."""

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""Of the red, green and blue values in [0, 255] that SAM was trained on; the small one keeps them."""


class FusedAttention(Attention):
    """segment-anything's attention through torch's fused function: equal to its last digits, in two thirds of the time.

    A softmax over the few tokens of a prompt, once for each cell of the image, is what takes longest in its own on a CPU.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (
            self._separate_heads(projection(x), self.num_heads)
            for projection, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        out: Tensor = self.out_proj(self._recombine_heads(torch.nn.functional.scaled_dot_product_attention(q, k, v)))
        return out


class Parts(nn.Module):
    """The three parts of a SAM under their official names, so that official state dictionaries fit."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.refines = size.refines
        self.image_encoder = ImageEncoderViT(
            img_size=size.input_px,
            patch_size=size.patch_px,
            embed_dim=size.dim,
            depth=size.depth,
            num_heads=size.heads,
            mlp_ratio=4,
            out_chans=size.prompt_dim,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]
            use_rel_pos=True,
            window_size=size.window,
            global_attn_indexes=size.global_blocks,
        )
        self.prompt_encoder = PromptEncoder(
            embed_dim=size.prompt_dim,
            image_embedding_size=(size.grid, size.grid),
            input_image_size=(size.input_px, size.input_px),
            mask_in_chans=size.mask_channels,
        )
        self.mask_decoder = MaskDecoder(
            transformer_dim=size.prompt_dim,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=size.prompt_dim, num_heads=size.decoder_heads, mlp_dim=size.decoder_mlp
            ),
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=size.iou_hidden,
        )
        for module in self.mask_decoder.modules():
            if type(module) is Attention:
                module.__class__ = FusedAttention

    def forward(
        self,
        embeddings: Tensor,
        *,
        boxes: Tensor | None,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        mask_logits: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`predict`, as a module's own method, so that it can be called with other parameters than the module's."""
        return predict(self, embeddings, boxes=boxes, points=points, point_labels=point_labels, mask_logits=mask_logits)


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """Which of `SIZES` a state dictionary belongs to, from its shapes alone; None when it is none of them.

    Every name and every shape must fit: a checkpoint with a part missing or left over is not a SAM.
    """
    projection = state.get("image_encoder.patch_embed.proj.weight")
    if projection is None or projection.ndim != 4:
        return None
    shapes = {name: tensor.shape for name, tensor in state.items()}
    for name, size in SIZES.items():
        if projection.shape == (size.dim, 3, size.patch_px, size.patch_px):
            with torch.device("meta"):
                expected = {key: tensor.shape for key, tensor in Parts(size).state_dict().items()}
            if shapes == expected:
                return name
    return None


def predict(
    parts: Parts,
    embeddings: Tensor,
    *,
    boxes: Tensor | None,
    points: Tensor | None = None,
    point_labels: Tensor | None = None,
    mask_logits: Tensor | None = None,
    tempered: bool = True,
) -> tuple[Tensor, Tensor]:
    """Masks for prompts that each have an embedding of their own.

    segment-anything's decoder repeats one image's embedding over all prompts; called on a batch of images it mixes
    them or stops with a size mismatch. So its transformer and its upscaling are called here on batched tensors:
    prompt p sees embedding p and nothing else.

    Args:
        parts: the three parts; nothing of them is changed.
        embeddings: (P, channels, grid, grid), of the image that prompt p is about.
        boxes: (P, 4) left, top, right, bottom, in pixels of the encoder's input, where pixel i covers [i, i + 1]; or
            None.
        points: (P, N, 2) x and y in the same frame, with `point_labels` (P, N): 1 inside, 0 outside, -1 no point; or
            None.
        mask_logits: (P, 1, 4·grid, 4·grid), an earlier answer's logits to be improved on, or another model's rough
            mask as logits; None when there is none.
        tempered: whether a SAM that refines leans on the box in what it answers to one without a mask prompt
            (`PICTURE_WEIGHT`). Pre-training alone does without.

    Returns:
        Logits (P, 4, 4·grid, 4·grid) and predicted IoU (P, 4): the mask for an unambiguous prompt first, then the
        three for an ambiguous one.
    """
    decoder, prompts = parts.mask_decoder, parts.prompt_encoder
    count = embeddings.shape[0]
    grid = {"input_px": prompts.input_image_size[0], "side": prompts.mask_input_size[0]}
    from_box = mask_logits is None and boxes is not None and parts.refines
    if from_box and boxes is not None:
        mask_logits = ellipse_logits(boxes, **grid)
    half = 0.5  # the prompt encoder adds it: it takes coordinates of pixel centres
    clicks = None if points is None or point_labels is None else (points - half, point_labels)
    sparse, dense = prompts(points=clicks, boxes=None if boxes is None else boxes - half, masks=mask_logits)

    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(count, -1, -1), sparse], dim=1)
    position = prompts.get_dense_pe().expand(count, -1, -1, -1)
    attended, image = decoder.transformer(embeddings + dense, position, tokens)

    upscaled = decoder.output_upscaling(image.transpose(1, 2).reshape(embeddings.shape))
    kernels = torch.stack([mlp(attended[:, 1 + number]) for number, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
    logits = torch.einsum("pmc,pchw->pmhw", kernels, upscaled)
    if from_box and boxes is not None and tempered:
        logits = PICTURE_WEIGHT * logits - OUTSIDE_PER_PX * outside_px(boxes, **grid)
    if mask_logits is not None and parts.refines:
        logits = logits + mask_logits
    return logits, decoder.iou_prediction_head(attended[:, 0])


def ellipse_logits(boxes: Tensor, *, input_px: int, side: int) -> Tensor:
    """The ellipses in boxes as mask prompts: logits (P, 1, side, side), 6 at the centre, 0 on the ellipse, -10 far away.

    Args:
        boxes: (P, 4) left, top, right, bottom in pixels of an image of `input_px`.
    """
    place = (torch.arange(side, device=boxes.device) + 0.5) * (input_px / side)
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, ((boxes[:, 2:] - boxes[:, :2]) / 2).clamp(min=0.5)
    x, y = ((place - middle[:, axis, None]) / half[:, axis, None] for axis in (0, 1))
    rho = torch.sqrt(x.square()[:, None, None, :] + y.square()[:, None, :, None])
    return (6 * (1 - rho)).clamp(min=-10)


def outside_px(boxes: Tensor, *, input_px: int, side: int) -> Tensor:
    """How far the middle of each cell lies outside of each box, to the side or above or below, whichever is more.

    Args:
        boxes: (P, 4) left, top, right, bottom in pixels of an image of `input_px`.

    Returns:
        (P, 1, side, side), in pixels of that image; 0 inside.
    """
    place = (torch.arange(side, device=boxes.device) + 0.5) * (input_px / side)
    x, y = (torch.maximum(boxes[:, axis, None] - place, place - boxes[:, axis + 2, None]).clamp(min=0) for axis in (0, 1))
    return torch.maximum(x[:, None, None, :], y[:, None, :, None])


def to_pixels(images: Tensor, size: Size) -> Tensor:
    """Images (B, 1 or 3, S, S) in [0, 1], S any, as the encoder takes them: (B, 3, input_px, input_px), normalised."""
    side = (size.input_px, size.input_px)
    if images.shape[-2:] != side:
        images = torch.nn.functional.interpolate(images, size=side, mode="bilinear", antialias=True, align_corners=False)
    images = images.expand(-1, 3, -1, -1)
    mean, spread = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    return (images * 255 - mean) / spread


def of_unit_scale(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that make of `to_pixels` what `state` makes of images in [0, 1]: the scale goes into the first layer.

    MedSAM (Ma et al., Nature Communications 2024) was trained so; its patches don't overlap nor are padded, so the two
    are equal.
    """
    weight, bias = (f"image_encoder.patch_embed.proj.{name}" for name in ("weight", "bias"))
    mean, spread = (torch.tensor(v).view(1, 3, 1, 1) / 255 for v in (PIXEL_MEAN, PIXEL_STD))
    shift = (state[weight] * mean).sum((1, 2, 3))
    return {**state, weight: state[weight] * spread, bias: state[bias] + shift}
