"""SAM as the site uses it: frozen, embeds an image once, answers many prompts about many images at a time.

Any official checkpoint by its path, or "small". Nothing is kept between calls: what comes out depends on what goes
in, item by item, whatever else is in the batch.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from client.sam_checkpoint import SamUnavailable, digest, is_medsam, path_of, read
from strategies.sam_adapters import effective
from strategies.sam_parts import SIZES, Parts, Size, predict, to_pixels
from strategies.semi.prompts import Prompts

__all__ = ["Sam", "SamUnavailable", "load_sam"]

_PIXELS_PER_BATCH = 16 * 128 * 128
"""Images are encoded so many input pixels at a time (one image at least): attention of a 1024 px image takes 0.8 GB."""

_CELLS_PER_BATCH = 512 * 16 * 16
"""Prompts are decoded so many cells of embedding at a time."""


class Sam:
    """A frozen SAM. No `nn.Module` on purpose: nothing can put it into training mode or find parameters to train."""

    def __init__(self, parts: Parts, *, size: str, device: torch.device, fingerprint: str) -> None:
        self.parts = parts.to(device).eval().requires_grad_(False)
        """Frozen, in evaluation mode; whoever trains SAM calls it with other parameters and leaves these alone."""
        self.name, self.size = size, SIZES[size]
        self.device = device
        self.fingerprint = fingerprint
        """Names weights and preprocessing, hex: two SAMs of equal fingerprint give the same embedding for an image."""

    @property
    def embedding_shape(self) -> tuple[int, int, int]:
        """(channels, rows, columns) of one image's embedding."""
        return self.size.prompt_dim, self.size.grid, self.size.grid

    @property
    def images_at_once(self) -> int:
        """How many images go through the encoder together."""
        return max(1, _PIXELS_PER_BATCH // self.size.input_px**2)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Embeddings (B, channels, rows, columns), float32, of images (B, 1 or 3, S, S) in [0, 1] of any side S.

        Raises:
            ValueError: images of another shape, or with values outside [0, 1].
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3) or images.shape[2] != images.shape[3]:
            raise ValueError(f"SAM takes square images (B, 1 or 3, S, S), not {tuple(images.shape)}: pad them first")
        if images.numel() and not bool(((images >= 0) & (images <= 1)).all()):
            raise ValueError("SAM takes images with values in [0, 1], and no NaN: scale their intensities first")
        if not len(images):
            return torch.empty(0, *self.embedding_shape, device=self.device)
        encoded = [
            self.parts.image_encoder(to_pixels(some.to(self.device, torch.float32), self.size))
            for some in torch.split(images, self.images_at_once)
        ]
        return torch.cat(encoded)

    @torch.no_grad()
    def decode(
        self,
        embeddings: Tensor,
        prompts: Prompts,
        *,
        size: tuple[int, int],
        box: bool = True,
        mask_logits: Tensor | None = None,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """One mask for each prompt, over all images of a batch at once.

        Args:
            embeddings: (B, channels, rows, columns) of any float type; `prompts.image_index` points into them.
            prompts: in pixels of images of `size`.
            size: (H, W) of the images, H = W, and of the masks that come back.
            box: whether the boxes are part of the prompt; clicks are where there are any.
            mask_logits: (P, H, W), a coarse mask of each prompt's object to start from; None for none.
            multimask: let SAM give three masks for an ambiguous prompt and take the one that it rates best; else its
                single mask, which is the right one for a box.

        Returns:
            Logits (P, H, W), positive inside, and predicted IoU (P,), both float32 on this SAM's device.
        """
        if size[0] != size[1]:
            raise ValueError(f"SAM answers about square images, not {size[0]} × {size[1]} ones: pad them first")
        if tuple(embeddings.shape[1:]) != self.embedding_shape:
            raise ValueError(f"embeddings of {tuple(embeddings.shape[1:])} are not this SAM's: {self.embedding_shape}")
        prompts, embeddings = prompts.to(self.device), embeddings.to(self.device)
        clicks = prompts.points.shape[1] > 0
        if not (box or clicks or mask_logits is not None):
            raise ValueError("nothing is asked: a prompt needs a box, a click or a mask")
        scale = self.size.input_px / size[0]
        at_once = max(1, _CELLS_PER_BATCH // self.size.grid**2)
        logits = torch.empty(len(prompts), *size, device=self.device)
        iou = torch.empty(len(prompts), device=self.device)
        for start in range(0, len(prompts), at_once):
            some = slice(start, start + at_once)
            masks, ratings = predict(
                self.parts,
                embeddings[prompts.image_index[some]].float(),
                boxes=prompts.boxes[some] * scale if box else None,
                points=prompts.points[some] * scale if clicks else None,
                point_labels=prompts.point_labels[some] if clicks else None,
                mask_logits=None if mask_logits is None else self.coarse(mask_logits[some]),
            )
            chosen = 1 + ratings[:, 1:].argmax(1) if multimask else torch.zeros_like(prompts.image_index[some])
            masks = masks.gather(1, chosen[:, None, None, None].expand(-1, 1, *masks.shape[2:]))
            logits[some] = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)[:, 0]
            iou[some] = ratings.gather(1, chosen[:, None])[:, 0]
        return logits, iou

    def adapted(self, adapter: Mapping[str, Tensor], *, seed: int) -> Sam:
        """This SAM with an adapter (`strategies/sam_adapters.py`); it shares all that the adapter leaves alone.

        Embeddings of an adapted encoder are others, so the fingerprint is; with an adapted decoder alone it stays.
        """
        changed = effective(dict(self.parts.named_parameters()), {n: v.to(self.device) for n, v in adapter.items()}, seed=seed)
        if not changed:
            return self
        parts = copy.copy(self.parts)
        parts._modules = dict(self.parts._modules)
        for part in {name.split(".")[0] for name in changed}:
            setattr(parts, part, copy.deepcopy(getattr(self.parts, part)))
        parts.load_state_dict(changed, strict=False)
        encoder = [changed[name] for name in sorted(changed) if name.startswith("image_encoder.")]
        digest = hashlib.sha256(self.fingerprint.encode())
        for tensor in encoder:
            digest.update(tensor.detach().cpu().numpy().tobytes())
        fingerprint = digest.hexdigest() if encoder else self.fingerprint
        return Sam(parts, size=self.name, device=self.device, fingerprint=fingerprint)

    def coarse(self, mask_logits: Tensor) -> Tensor:
        """Masks (P, H, W) at the side that the prompt encoder takes, (P, 1, 4·grid, 4·grid)."""
        side = (4 * self.size.grid, 4 * self.size.grid)
        fine = mask_logits.to(self.device, torch.float32)[:, None]
        return F.interpolate(fine, size=side, mode="bilinear", antialias=True, align_corners=False)


def load_sam(checkpoint: str, *, device: torch.device | str) -> Sam:
    """The SAM of a checkpoint: "small", or the path of one (official, MedSAM's, or made by `wardround pretrain-sam`).

    Which kind it is follows from the weights. The one last asked for is kept, and given again while its file is the
    same, so that neither a step nor a round reads it anew.

    Raises:
        SamUnavailable: a file that is missing, unreadable or not a SAM; names it and says what to do.
    """
    path = path_of(checkpoint)
    try:
        stamp = path.stat()
    except OSError:
        return _load(path, torch.device(device))  # which says what is wrong
    return _kept(path.absolute(), stamp.st_mtime_ns, stamp.st_size, torch.device(device))


@lru_cache(maxsize=1)
def _kept(path: Path, mtime_ns: int, size: int, device: torch.device) -> Sam:
    return _load(path, device)


def _load(path: Path, device: torch.device) -> Sam:
    weights = digest(path)
    size, state = read(path)
    scale = " of unit scale" * is_medsam(path)
    fingerprint = hashlib.sha256(f"{weights} {_preprocessing(SIZES[size])}{scale}".encode()).hexdigest()
    with torch.device("meta"):
        parts = Parts(SIZES[size])
    parts.load_state_dict(state, assign=True)
    return Sam(parts, size=size, device=device, fingerprint=fingerprint)


def _preprocessing(size: Size) -> str:
    """What `to_pixels` makes of a probe, as hex: when that changes, kept embeddings are of other pixels and are not used."""
    probe = torch.linspace(0.0, 1.0, 37 * 37).view(1, 1, 37, 37)
    pixels = (64 * to_pixels(probe, size)).round().to(torch.int16)  # coarser than machines differ
    return hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
