"""Synthetic scenes: reproducible, in range, and as varied as the objects that a prompt may mean."""

import torch

from simulation.sam_shapes import OBJECTS, _deceptions, _Random, _room_beside, draw


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
