"""Tensors that many responses have in common are made once, and only so many are kept."""

from mixtral_serving.reused_tensors import ReusedTensors


def test_a_value_that_comes_again_gets_the_same_tensor() -> None:
    tensors = ReusedTensors(lambda value: [value])
    first = tensors[b"one"]
    assert first == [b"one"]
    assert tensors[b"one"] is first
    assert tensors[b"two"] is not first


def test_what_is_used_stays_and_the_rest_is_forgotten() -> None:
    tensors = ReusedTensors(lambda value: [value], kept=4)
    used = tensors[0]
    for value in range(1, 1000):
        assert tensors[value] == [value]
        assert tensors[0] is used
        assert len(tensors) <= 2 * 4
