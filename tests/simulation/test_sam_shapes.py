"""Synthetic scenes: reproducible, in range, and as varied as the objects that a prompt may mean."""

import torch
from torch.nn import functional as F

from simulation.sam_shapes import OBJECTS, PAIRS, _deceptions, _image, _noise, _paint, _Random, _room_beside, _shapes, draw


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_scene_follows_from_the_generator_alone() -> None:
    torch.manual_seed(1)
    one = draw(generator(7), batch=2, side=64)
    torch.manual_seed(2)
    same, other = draw(generator(7), batch=2, side=64), draw(generator(8), batch=2, side=64)
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.labels, same.labels)
    assert not torch.equal(one.images, other.images)


def test_images_are_finite_in_range_and_not_flat_and_labels_are_objects() -> None:
    for seed in range(4):
        for side in (64, 128):
            scenes = draw(generator(seed), batch=4, side=side)
            assert scenes.images.shape == (4, 1, side, side)
            assert scenes.images.dtype == torch.float32
            assert scenes.images.isfinite().all()
            assert scenes.images.min() >= 0
            assert scenes.images.max() <= 1
            assert (scenes.images.flatten(1).std(1) > 0.02).all()
            assert scenes.labels.shape == (4, side, side)
            assert scenes.labels.min() >= 0
            assert scenes.labels.max() <= OBJECTS


def test_objects_reach_from_specks_to_most_of_the_image() -> None:
    shares = []
    for seed in range(12):
        labels = draw(generator(seed), batch=16, side=64).labels
        counts = torch.stack([(labels == k).float().mean((1, 2)) for k in range(1, OBJECTS + 1)], 1)
        shares.append(counts[counts > 0])
    found = torch.cat(shares)
    assert found.min() < 0.01
    assert found.max() > 0.9
    assert ((found > 0.02) & (found < 0.2)).float().mean() > 0.2


def test_what_is_seen_of_an_object_is_what_later_ones_and_the_frame_leave() -> None:
    scenes = draw(generator(5), batch=16, side=64)
    assert scenes.seen.shape == (16, OBJECTS)
    assert scenes.seen.min() >= 0
    assert scenes.seen.max() == 1
    appear = torch.stack([(scenes.labels == k).any(2).any(1) for k in range(1, OBJECTS + 1)], 1)
    assert torch.equal(scenes.seen > 0, appear)
    assert ((scenes.seen > 0) & (scenes.seen < 0.6)).any()


def test_what_is_in_an_object_differs_from_what_is_around_it_more_when_it_is_easy() -> None:
    """Mean difference to the ring around it, in units of the image's spread: hard scenes have hardly visible borders."""

    def contrasts(ease: float) -> torch.Tensor:
        found = []
        for seed in range(6):
            scenes = draw(generator(seed), batch=8, side=64, ease=ease)
            for image, labels in zip(scenes.images[:, 0], scenes.labels, strict=True):
                for k in range(1, OBJECTS + 1):
                    inside = labels == k
                    grown = torch.nn.functional.max_pool2d(inside[None].float(), 7, stride=1, padding=3)[0] > 0
                    around = grown & ~inside
                    if inside.sum() > 30 and around.sum() > 30:
                        found.append((image[inside].mean() - image[around].mean()).abs() / image.std())
        return torch.stack(found)

    hard, easy = contrasts(0.0), contrasts(1.0)
    assert hard.median() < easy.median()
    assert hard.quantile(0.1) < 0.35
    assert hard.median() > 0.4  # what no eye can find teaches to look away
    assert easy.median() > 0.4


def test_a_shape_that_wraps_around_another_leaves_it_whole_and_is_bent_around_it() -> None:
    line = torch.linspace(-1, 1, 64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    radius = torch.tensor([[0.5, 0.4, 0.3, 0.2]])
    offset = torch.tensor([0.0, 0.45, 0.0, 0.0])[None, :, None, None]
    outer = 1 - torch.sqrt((x - offset).square() + y.square()) / radius[..., None, None]
    wraps = torch.tensor([[0.0, 1.0, 0.0, 0.0]])  # the second around the first
    left = torch.minimum(outer, _room_beside(_Random(generator(0), 1, 64, 0.0), outer, radius, wraps))
    assert torch.equal(left[:, [0, 2, 3]], outer[:, [0, 2, 3]])
    assert not ((left[0, 1] > 0) & (outer[0, 0] > 0)).any()
    crescent = left[0, 1] > 0
    first = torch.where(crescent.any(1), crescent.float().argmax(1), 64)
    assert first[32] > first.min() + 2  # hollow where the other one is, with horns beside it


def test_brightness_ends_elsewhere_than_the_outline_in_some_objects_alone() -> None:
    depth = (10 - (torch.arange(64.0) - 32).abs())[None, None, None].expand(40, OBJECTS, 64, 64)
    deceived = _deceptions(_Random(generator(3), 40, 64, 0.0), depth)
    inwards, outwards = (deceived > 1).flatten(2).any(2).float().mean(), (deceived < -1).flatten(2).any(2).float().mean()
    assert 0.1 < inwards < 0.45
    assert 0.02 < outwards < 0.25
    assert deceived.min() >= -4  # no bright spots far from the object
    assert ((deceived == 0).flatten(2).all(2)).float().mean() > 0.4


def test_some_objects_are_walls_around_a_lumen() -> None:
    depth = _shapes(_Random(generator(0), 64, 64, 0.0))[0].reshape(64, PAIRS, 2, 64, 64)
    flesh, lumen = depth[:, :, 0] > 0, depth[:, :, 1] > 0
    assert 0.1 < lumen.flatten(2).any(2).float().mean() < 0.3
    assert not (flesh & lumen).any()
    grown = F.max_pool2d(lumen.float(), 3, stride=1, padding=1) > 0
    border = grown & ~lumen
    assert flesh[border].float().mean() > 0.85, "hardly a gap in the wall"


def test_objects_are_textured_but_when_they_are_easy() -> None:
    def roughness(ease: float) -> float:
        """Typical spread of brightness deep in an object, spots and soft borders apart."""
        rng = _Random(generator(4), 64, 64, ease)
        depth = torch.full((64, OBJECTS, 64, 64), -50.0)
        depth[:, 0, 8:56, 8:56] = 50.0
        canvas, _ = _paint(rng, depth, torch.zeros_like(depth), torch.zeros(64, OBJECTS))
        return float(canvas[:, 24:40, 24:40].flatten(1).std(1).quantile(0.8))

    assert roughness(0.0) > 0.04
    assert roughness(0.0) > 1.5 * roughness(1.0)


def test_noise_is_that_of_scanners_and_ends_with_ease() -> None:
    """About air (0) and tissue (0.5): Gaussian noise falls below 0, Rician lies above, speckle leaves air alone."""
    picture = torch.zeros(400, 1, 32, 32)
    picture[..., 16:] = 0.5
    noisy = _noise(_Random(generator(1), 400, 32, 0.0), picture, share=1.0)
    air, tissue = noisy[..., :16].flatten(1), noisy[..., 16:].flatten(1)
    gaussian, speckle = (air < 0).any(1), (air == 0).all(1)
    rician = ~gaussian & ~speckle
    for kind, share in ((gaussian, 0.4), (rician, 0.4), (speckle, 0.2)):
        assert abs(kind.float().mean() - share) < 0.1
        assert tissue[kind].std(1).max() > 0.05
    assert air[rician].mean(1).max() > 0.08, "the magnitude of noise is not 0"
    assert air[gaussian].mean(1).abs().max() < 0.03
    assert torch.equal(_noise(_Random(generator(1), 400, 32, 1.0), picture, share=1.0), picture)


def test_pictures_are_shaded_from_one_side_to_another() -> None:
    board = (torch.arange(64)[:, None] // 8 + torch.arange(64) // 8) % 2 * 0.4 + 0.3
    scenes, _ = _image(_Random(generator(2), 64, 64, 1.0), board.expand(64, 64, 64), torch.zeros(64, 64, 64, dtype=torch.int64))
    quarters = F.avg_pool2d(scenes, 32).flatten(1)
    assert ((quarters.amax(1) - quarters.amin(1)) > 0.1).float().mean() > 0.2
