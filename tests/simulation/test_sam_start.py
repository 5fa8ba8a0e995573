"""What a run starts from can tell half a pixel, and every part of it is alive."""

import torch

from simulation.sam_exam import dice, ellipses
from simulation.sam_start import initialise
from strategies.sam_parts import SIZES, Parts, predict


def started(seed: int = 0) -> Parts:
    torch.manual_seed(seed)
    parts = Parts(SIZES["small"])
    initialise(parts)
    return parts


def test_half_a_pixel_moves_an_edges_encoding_far_more_than_segment_anythings_own_frequencies() -> None:
    side = SIZES["small"].input_px
    edges = torch.rand(64, 1, 2, generator=torch.Generator().manual_seed(0)) * (side - 1)

    def moved(parts: Parts) -> float:
        encode = parts.prompt_encoder.pe_layer.forward_with_coords
        return float((encode(edges + 0.5, (side, side)) - encode(edges, (side, side))).square().mean())

    assert moved(started()) > 3 * moved(Parts(SIZES["small"]))


def test_frequencies_are_half_along_either_axis_from_slow_to_fast() -> None:
    matrix = started().get_buffer("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix")
    across, along = matrix[0].nonzero().flatten(), matrix[1].nonzero().flatten()
    assert len(across) == len(along) == matrix.shape[1] // 2
    assert not set(across.tolist()) & set(along.tolist())
    assert torch.equal(matrix[0, across], matrix[1, along])
    assert matrix.max() >= 16 * matrix[0, across].min()


def test_cells_know_where_they_are() -> None:
    positions = started().image_encoder.pos_embed
    assert positions is not None
    cells = positions.detach().flatten(1, 2)[0]
    apart = torch.cdist(cells, cells) + 1e3 * torch.eye(len(cells))
    assert apart.min() > 0.1


def test_it_follows_from_torchs_seed() -> None:
    one, same = started().state_dict(), started().state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)


def test_the_first_answer_to_a_box_is_about_the_ellipse_in_it() -> None:
    size, parts = SIZES["small"], started()
    boxes = torch.tensor([[8.0, 8.0, 40.0, 60.0], [50.0, 20.0, 90.0, 70.0]])
    embeddings = torch.randn(2, size.prompt_dim, size.grid, size.grid, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, _ = predict(parts, embeddings, boxes=boxes)
    assert dice(logits[:, 0] > 0, ellipses(boxes, size.input_px)).min() > 0.9
