"""What crosses in one set of arrays comes apart as it was put together."""

from strategies.global_model import GlobalModel, parts_of


def test_names_say_what_an_array_belongs_to() -> None:
    arrays = {
        "conv.weight": 1,
        "sampler": 2,
        "peers": 3,
        "sam.mask_decoder.x": 4,
        "peer.second.conv.weight": 5,
        "peer.third.x": 6,
    }
    parts = parts_of(arrays)
    assert parts.specialist == {"conv.weight": 1, "sampler": 2, "peers": 3}
    assert parts.adapter == {"sam.mask_decoder.x": 4}
    assert parts.peers == {"second": {"conv.weight": 5}, "third": {"x": 6}}
    assert parts.arrays == arrays


def test_a_model_without_company_is_its_specialist() -> None:
    assert parts_of({"a": 1}) == GlobalModel({"a": 1})
    assert GlobalModel({"a": 1}).arrays == {"a": 1}
