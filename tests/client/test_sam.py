"""The frozen SAM: batches equal single prompts through segment-anything's own decoder, and nothing leaks between items."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from client import sam as sam_module
from client.sam import Sam, load_sam
from strategies.sam_parts import SIZES, FusedAttention, Parts, ellipse_logits, outside_px, predict, to_pixels
from strategies.semi.prompts import Prompts, prompts_from

from segment_anything.modeling.transformer import Attention  # isort: skip  (after strategies, which makes torchvision importable)

SIDE = SIZES["small"].input_px
"""Of images that are not scaled on the way in: prompts are then in pixels of the encoder's input."""


@pytest.fixture(scope="module")
def small() -> Sam:
    return load_sam("small", device="cpu")


def discs(*places: tuple[float, float, float], size: int = 128) -> tuple[Tensor, Tensor]:
    """Images (B, 1, S, S) of a bright disc each (row, column, radius as shares of the side), and the discs (B, S, S)."""
    line = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(line, line, indexing="ij")
    masks = torch.stack([(y - row) ** 2 + (x - column) ** 2 <= radius**2 for row, column, radius in places])
    texture = torch.rand(masks.shape, generator=torch.Generator().manual_seed(1))
    return (0.3 + 0.4 * masks + 0.05 * texture)[:, None], masks


def prompts_of(masks: Tensor) -> Prompts:
    """Prompts as from a teacher that sees exactly these masks (B, S, S)."""
    return prompts_from(torch.stack([~masks, masks], 1).float(), padding_px=0)


def several(size: int = 128) -> tuple[Tensor, Prompts]:
    images, masks = discs((0.4, 0.5, 0.2), (0.6, 0.3, 0.1), (0.5, 0.5, 0.3), size=size)
    probs = torch.stack([~masks, masks], 1).float()
    probs[0, :, : size // 8, : size // 8] = torch.tensor([0.0, 1.0])[:, None, None]  # a second component
    return images, prompts_from(probs)


def permuted(prompts: Prompts, order: list[int]) -> tuple[Prompts, Tensor]:
    """Prompts for the batch images[order], and which of the old prompts each new one is."""
    places = [number for image in order for number in torch.where(prompts.image_index == image)[0].tolist()]
    chosen = prompts.select(torch.tensor(places))
    new_index = torch.tensor([order.index(int(image)) for image in chosen.image_index])
    return Prompts(new_index, *(getattr(chosen, field.name) for field in fields(chosen)[1:])), torch.tensor(places)


KINDS = [("box", "clicks"), ("box",), ("clicks",), ("mask",), ("box", "mask"), ("box", "clicks", "mask")]
"""What a prompt may hold."""


def asked(kinds: tuple[str, ...], prompts: Prompts) -> tuple[Prompts, bool, Tensor | None]:
    """Prompts with their clicks or without, whether the box counts, and a coarse mask of each component or None."""
    count = prompts.points.shape[1] if "clicks" in kinds else 0
    some = replace(prompts, points=prompts.points[:, :count], point_labels=prompts.point_labels[:, :count])
    return some, "box" in kinds, torch.where(prompts.components, 4.0, -4.0) if "mask" in kinds else None


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_a_batch_equals_segment_anythings_own_decoder_one_prompt_at_a_time(small: Sam, kinds: tuple[str, ...]) -> None:
    images, prompts = several(SIDE)
    embeddings = small.encode(images)
    prompts, box, masks = asked(kinds, prompts)
    logits, iou = small.decode(embeddings, prompts, size=(SIDE, SIDE), box=box, mask_logits=masks)
    parts = small.parts
    side = 4 * small.embedding_shape[1]
    assert len(prompts) == 4
    for number in range(len(prompts)):
        image = images[prompts.image_index[number]][None]
        own = prompts.select(torch.tensor([number]))
        with torch.no_grad():
            coarse = None if masks is None else masks[number][None, None]
            if coarse is not None:
                coarse = F.interpolate(coarse, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
            elif box:
                coarse = ellipse_logits(own.boxes, input_px=SIDE, side=side)
            sparse, dense = parts.prompt_encoder(
                points=(own.points - 0.5, own.point_labels) if "clicks" in kinds else None,
                boxes=own.boxes - 0.5 if box else None,
                masks=coarse,
            )
            mask, rating = parts.mask_decoder(
                image_embeddings=parts.image_encoder(to_pixels(image, small.size)),
                image_pe=parts.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
        if coarse is not None and "mask" not in kinds:
            mask = 0.4 * mask - outside_px(own.boxes, input_px=SIDE, side=side)
        mask = mask if coarse is None else mask + coarse
        mask = F.interpolate(mask, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        assert torch.allclose(logits[number], mask[0, 0], atol=1e-4)
        assert torch.allclose(iou[number], rating[0, 0], atol=1e-5)


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_permuting_the_batch_permutes_the_result(small: Sam, kinds: tuple[str, ...]) -> None:
    images, prompts = several()
    prompts, box, masks = asked(kinds, prompts)
    logits, iou = small.decode(small.encode(images), prompts, size=(128, 128), box=box, mask_logits=masks)
    for order in ([2, 0, 1], [1, 2, 0]):
        moved, places = permuted(prompts, order)
        coarse = None if masks is None else masks[places]
        again, again_iou = small.decode(small.encode(images[order]), moved, size=(128, 128), box=box, mask_logits=coarse)
        assert torch.allclose(again, logits[places], atol=1e-4)
        assert torch.allclose(again_iou, iou[places], atol=1e-5)


def test_what_else_is_in_the_batch_and_what_came_before_does_not_matter(small: Sam) -> None:
    images, prompts = several()
    embeddings = small.encode(images)
    logits, _ = small.decode(embeddings, prompts, size=(128, 128))
    others = embeddings.clone()
    others[1:] = torch.randn(others[1:].shape, generator=torch.Generator().manual_seed(0))
    of_first = prompts.image_index == 0
    changed, _ = small.decode(others, prompts, size=(128, 128))
    assert torch.allclose(changed[of_first], logits[of_first], atol=1e-5)
    assert not torch.allclose(changed[~of_first], logits[~of_first], atol=1e-2)
    alone, _ = small.decode(embeddings[:1], prompts.select(of_first), size=(128, 128))
    assert torch.allclose(alone, logits[of_first], atol=1e-4)
    repeated, _ = small.decode(embeddings, prompts, size=(128, 128))
    assert torch.equal(repeated, logits)


def test_many_prompts_are_decoded_in_portions_without_a_trace(small: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    images, prompts = several()
    embeddings = small.encode(images)
    whole, whole_iou = small.decode(embeddings, prompts, size=(128, 128))
    monkeypatch.setattr(sam_module, "_CELLS_PER_BATCH", 3 * 16 * 16)
    monkeypatch.setattr(sam_module, "_PIXELS_PER_BATCH", 2 * 128 * 128)
    portions, portions_iou = small.decode(small.encode(images), prompts, size=(128, 128))
    assert torch.allclose(portions, whole, atol=1e-4)
    assert torch.allclose(portions_iou, whole_iou, atol=1e-5)


@pytest.mark.parametrize("size", [64, 96, 128, 200])
def test_images_of_any_side_are_answered_on_their_own_grid(small: Sam, size: int) -> None:
    images, masks = discs((0.4, 0.55, 0.2), size=size)
    logits, iou = small.decode(small.encode(images), prompts_of(masks), size=(size, size))
    assert logits.shape == (1, size, size)
    assert iou.shape == (1,)
    answer = logits > 0
    dice = 2 * (answer & masks).sum() / (answer.sum() + masks.sum())
    assert dice > 0.85


def centres(count: int, of: int) -> Tensor:
    """Where the centres of `count` pixels lie among those of `of` others along the same side: 0 is the first of these."""
    return ((torch.arange(count) + 0.5) * of / count - 0.5).clamp(0, of - 1)


@pytest.mark.parametrize("size", [48, 96, 192])
def test_an_answer_lies_where_the_image_does(small: Sam, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Logits that rise by 1 with each column and by 2 with each row do so from the image's border to its border."""
    cells = torch.arange(96.0)
    rising = (cells + 2 * cells[:, None]).expand(1, 4, 96, 96)
    monkeypatch.setattr(sam_module, "predict", lambda *_, **__: (rising, torch.ones(1, 4)))
    images, masks = discs((0.4, 0.55, 0.2), size=size)
    logits, _ = small.decode(small.encode(images), prompts_of(masks), size=(size, size))
    place = centres(size, of=96)
    assert torch.allclose(logits[0], place + 2 * place[:, None], atol=1e-3)


@pytest.mark.parametrize("size", [48, 96, 192])
def test_a_coarse_mask_lies_where_the_image_does(small: Sam, size: int) -> None:
    pixels = torch.arange(float(size))
    coarse = small.coarse((pixels + 2 * pixels[:, None])[None])
    assert coarse.shape == (1, 1, 96, 96)
    place = centres(96, of=size)
    expected = place + 2 * place[:, None]
    assert torch.allclose(coarse[0, 0, 1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-3), "all but what lacks a neighbour"


def test_it_answers_what_the_box_asks_for(small: Sam) -> None:
    """Two discs in one image: the answer to each box is that disc. A decoder that ignored prompts could not do both."""
    line = torch.arange(128) + 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    left, right = (y - 64) ** 2 + (x - 32) ** 2 <= 20**2, (y - 64) ** 2 + (x - 96) ** 2 <= 16**2
    image = (0.3 + 0.4 * (left | right).float())[None, None]
    prompts = prompts_from(torch.stack([~(left | right), left, right]).float()[None])
    logits, _ = small.decode(small.encode(image), prompts, size=(128, 128))
    for answer, meant, other in zip(logits > 0, (left, right), (right, left), strict=True):
        assert 2 * (answer & meant).sum() / (answer.sum() + meant.sum()) > 0.8
        assert (answer & other).sum() < 0.1 * other.sum()


def test_it_outlines_what_the_picture_shows_where_the_ellipse_in_the_box_is_wrong(small: Sam) -> None:
    """A triangle, a crescent, an angle, a diamond: of each, the ellipse that it starts from gets a third wrong."""
    line = torch.arange(128) + 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    triangle = (y > 30) & (y < 100) & (x > 30) & (x < y)
    crescent = ((y - 64) ** 2 + (x - 64) ** 2 <= 34**2) & ((y - 64) ** 2 + (x - 84) ** 2 > 30**2)
    angle = (x > 30) & (y < 100) & (((x < 55) & (y > 25)) | ((x < 100) & (y > 75)))
    diamond = (y - 64).abs() + (x - 64).abs() < 36

    def dice(answer: Tensor, shape: Tensor) -> float:
        return float(2 * (answer & shape).sum() / (answer.sum() + shape.sum()))

    for shape in (triangle, crescent, angle, diamond):
        image = (0.3 + 0.4 * shape.float())[None, None]
        prompts = prompts_from(torch.stack([~shape, shape]).float()[None], positives=0, negatives=0)
        logits, _ = small.decode(small.encode(image), prompts, size=(128, 128))
        guess = ellipse_logits(prompts.boxes, input_px=128, side=128)[0, 0] > 0
        assert dice(guess, shape) < 0.75
        assert dice(logits[0] > 0, shape) > 0.85


def test_a_mask_prompt_is_heard_and_stands_in_for_the_ellipse(small: Sam) -> None:
    images, prompts = several(SIDE)
    parts, embeddings = small.parts, small.encode(images)[prompts.image_index]
    told = ellipse_logits(prompts.boxes, input_px=SIDE, side=parts.prompt_encoder.mask_input_size[0])

    def answer(mask_logits: Tensor | None) -> Tensor:
        with torch.no_grad():
            return predict(parts, embeddings, boxes=prompts.boxes, mask_logits=mask_logits, tempered=False)[0]

    assert torch.equal(answer(None), answer(told))
    assert not torch.allclose(answer(-told), answer(told), atol=1e-2)


def test_an_answer_to_a_box_leans_on_it_and_one_to_a_mask_or_a_click_does_not(small: Sam) -> None:
    """ellipse + 0.4 · decoder − pixels outside of the box; pre-training sees ellipse + decoder."""
    images, prompts = several(SIDE)
    parts, embeddings, side = (
        small.parts,
        small.encode(images)[prompts.image_index],
        small.parts.prompt_encoder.mask_input_size[0],
    )
    ellipse = ellipse_logits(prompts.boxes, input_px=SIZES["small"].input_px, side=side)
    outside = outside_px(prompts.boxes, input_px=SIZES["small"].input_px, side=side)
    clicks = {"points": prompts.points, "point_labels": prompts.point_labels}
    with torch.no_grad():
        given, learned = (predict(parts, embeddings, boxes=prompts.boxes, tempered=t)[0] for t in (True, False))
        assert torch.allclose(given, ellipse + 0.4 * (learned - ellipse) - outside, atol=1e-4)
        both = [predict(parts, embeddings, boxes=prompts.boxes, **clicks, tempered=t)[0] for t in (True, False)]
        assert torch.allclose(both[0], ellipse + 0.4 * (both[1] - ellipse) - outside, atol=1e-4), "with clicks beside the box too"
        for boxes, mask in ((None, None), (prompts.boxes, ellipse)):
            same = [predict(parts, embeddings, boxes=boxes, **clicks, mask_logits=mask, tempered=t)[0] for t in (True, False)]
            assert torch.equal(*same)
        parts.refines = False
        try:
            same = [predict(parts, embeddings, boxes=prompts.boxes, tempered=t)[0] for t in (True, False)]
        finally:
            parts.refines = True
        assert torch.equal(*same), "published weights answer as they were trained to"


def test_how_far_outside_of_a_box_is_told_in_pixels_of_the_image() -> None:
    found = outside_px(torch.tensor([[2.0, 4.0, 6.0, 5.0]]), input_px=8, side=8)[0, 0]
    assert found[4].tolist() == [1.5, 0.5, 0, 0, 0, 0, 0.5, 1.5]
    assert found[:, 3].tolist() == [3.5, 2.5, 1.5, 0.5, 0, 0.5, 1.5, 2.5]
    assert found[7, 0] == 2.5, "the larger of the two ways"
    coarse = outside_px(torch.tensor([[2.0, 4.0, 6.0, 5.0]]), input_px=8, side=4)[0, 0]
    assert coarse[2].tolist() == [1, 0, 0, 1]


def test_clicks_alone_and_sizes_trained_without_it_get_no_mask_prompt() -> None:
    """segment-anything's embedding of "no mask" is what they are given."""
    torch.manual_seed(0)
    parts = Parts(SIZES["small"]).eval()
    embeddings = torch.randn(2, SIZES["small"].prompt_dim, SIZES["small"].grid, SIZES["small"].grid)
    points, labels = torch.tensor([[[40.0, 50.0]], [[90.0, 20.0]]]), torch.ones(2, 1)
    boxes = torch.tensor([[10.0, 20.0, 50.0, 90.0], [40.0, 4.0, 92.0, 60.0]])

    def answers() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            clicked = predict(parts, embeddings, boxes=None, points=points, point_labels=labels)[0]
            return clicked, predict(parts, embeddings, boxes=boxes)[0]

    before = answers()
    torch.nn.init.normal_(parts.prompt_encoder.no_mask_embed.weight, std=3)
    after = answers()
    assert not torch.allclose(before[0], after[0], atol=1e-3)
    assert torch.equal(before[1], after[1])
    parts.refines = False
    assert not torch.allclose(answers()[1], before[1], atol=1e-3)
    assert [name for name, size in SIZES.items() if size.refines] == ["small"]


def test_the_ellipse_of_a_box_touches_its_sides() -> None:
    boxes = torch.tensor([[16.0, 32.0, 80.0, 64.0], [5.0, 5.0, 5.0, 5.0]])
    logits = ellipse_logits(boxes, input_px=128, side=128)
    assert logits.shape == (2, 1, 128, 128)
    rows, columns = torch.where(logits[0, 0] > 0)
    assert [int(edge) for edge in (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1)] == [16, 80, 32, 64]
    assert float((logits[0] > 0).sum()) == pytest.approx(torch.pi * 32 * 16, rel=0.01)
    assert logits.max() <= 6
    assert logits.min() == -10
    assert logits.isfinite().all()
    coarse = ellipse_logits(boxes, input_px=128, side=64)
    assert torch.allclose(F.avg_pool2d(logits[:1, :, 32:64, 16:80], 2), coarse[:1, :, 16:32, 8:40], atol=0.1)


def test_grey_and_its_three_equal_channels_are_the_same_image(small: Sam) -> None:
    images, _ = discs((0.5, 0.5, 0.2))
    assert torch.equal(small.encode(images), small.encode(images.repeat(1, 3, 1, 1)))


def test_multimask_takes_the_best_rated_of_the_three(small: Sam) -> None:
    images, prompts = several(SIDE)
    embeddings = small.encode(images)
    logits, iou = small.decode(embeddings, prompts, size=(SIDE, SIDE), multimask=True)
    with torch.no_grad():
        masks, ratings = predict(
            small.parts,
            embeddings[prompts.image_index],
            boxes=prompts.boxes,
            points=prompts.points,
            point_labels=prompts.point_labels,
        )
    for number in range(len(prompts)):
        best = max(range(1, 4), key=lambda mask: float(ratings[number, mask]))
        expected = F.interpolate(masks[number, best][None, None], (SIDE, SIDE), mode="bilinear", align_corners=False)
        assert torch.allclose(logits[number], expected[0, 0], atol=1e-5)
        assert float(iou[number]) == pytest.approx(float(ratings[number, best]), abs=1e-6)


def test_it_is_frozen_whatever_is_asked(small: Sam) -> None:
    images, prompts = several()
    embeddings = small.encode(images.requires_grad_())
    logits, iou = small.decode(embeddings.requires_grad_(), prompts, size=(128, 128))
    assert not logits.requires_grad
    assert not iou.requires_grad
    assert not any(parameter.requires_grad for parameter in small.parts.parameters())
    assert not any(module.training for module in small.parts.modules())


def test_no_prompts_and_no_images_are_no_special_case(small: Sam) -> None:
    images, _ = discs((0.5, 0.5, 0.2))
    nothing = prompts_from(torch.tensor([1.0, 0.0])[None, :, None, None].expand(1, 2, 128, 128))
    logits, iou = small.decode(small.encode(images), nothing, size=(128, 128))
    assert logits.shape == (0, 128, 128)
    assert iou.shape == (0,)
    assert small.encode(images[:0]).shape == (0, *small.embedding_shape)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(1, 1, 64, 96), "pad"),
        (torch.rand(1, 2, 64, 64), "square"),
        (torch.rand(64, 64), "square"),
        (torch.rand(1, 1, 64, 64) * 255, r"\[0, 1\]"),
        (torch.full((1, 1, 64, 64), torch.nan), "NaN"),
    ],
)
def test_images_it_cannot_take_are_refused(small: Sam, images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small.encode(images)


def test_embeddings_of_another_sam_and_oblong_sizes_are_refused(small: Sam) -> None:
    _, prompts = several()
    with pytest.raises(ValueError, match="not this SAM's"):
        small.decode(torch.zeros(3, 256, 64, 64), prompts, size=(128, 128))
    with pytest.raises(ValueError, match="pad"):
        small.decode(torch.zeros(3, *small.embedding_shape), prompts, size=(128, 64))


def test_a_prompt_that_holds_nothing_is_refused(small: Sam) -> None:
    images, prompts = several()
    nothing, box, masks = asked((), prompts)
    with pytest.raises(ValueError, match="nothing is asked"):
        small.decode(small.encode(images), nothing, size=(128, 128), box=box, mask_logits=masks)


def test_every_kind_of_prompt_matters(small: Sam) -> None:
    """A kind that is switched off must make a difference, or the switch would be an ornament."""
    images, prompts = several()
    embeddings = small.encode(images)
    answers = []
    for kinds in KINDS:
        some, box, masks = asked(kinds, prompts)
        answers.append(small.decode(embeddings, some, size=(128, 128), box=box, mask_logits=masks)[0])
    for first in range(len(answers)):
        for second in range(first):
            assert not torch.allclose(answers[first], answers[second], atol=1e-3)


def test_the_fused_attention_is_segment_anythings_own() -> None:
    torch.manual_seed(0)
    own = Attention(64, num_heads=4, downsample_rate=2)
    fused = Attention(64, num_heads=4, downsample_rate=2)
    fused.__class__ = FusedAttention
    fused.load_state_dict(own.state_dict())
    for many, few in ((576, 9), (9, 576), (9, 9)):
        q, k, v = torch.randn(3, many, 64), torch.randn(3, few, 64), torch.randn(3, few, 64)
        assert torch.allclose(fused(q, k, v), own(q, k, v), atol=1e-5)
    decoder = Parts(SIZES["small"]).mask_decoder
    assert {type(module) for module in decoder.modules() if isinstance(module, Attention)} == {FusedAttention}
