"""Philox streams: Random123's known answers, independence of the way they are drawn, and C++ beside Python."""

from __future__ import annotations

import pytest
import torch

from fastspec.ops.philox import MAX_SAMPLES, Purpose, batch_indices, philox4x32, words

ONES = 0xFFFFFFFF
KNOWN = [  # counter, key, answer: kat_vectors of Random123, philox4x32 with 10 rounds
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer):
    got = philox4x32(tuple(torch.tensor(c) for c in counter), tuple(torch.tensor(k) for k in key))
    assert tuple(int(w) for w in got) == answer


def test_stream_layout():
    seed, step = (0xA4093822, 0x299F31D0), (0x13198A2E, 0x03707344)
    seeds, steps = (torch.tensor([low + (high << 32)]) for low, high in (seed, step))
    counter = (torch.tensor(1), torch.tensor(int(Purpose.BATCH)), torch.tensor(step[0]), torch.tensor(step[1]))
    expected = philox4x32(counter, (torch.tensor(seed[0]), torch.tensor(seed[1])))
    assert words(seeds, Purpose.BATCH, steps, 8)[0, 0, 4:].tolist() == [int(w) for w in expected]


def test_a_word_does_not_depend_on_what_is_drawn_with_it():
    seeds, steps = torch.tensor([-1, 0, 2**62]), torch.tensor([0, 7, 2**40])
    many = words(seeds, 0, steps, 11)
    assert many.min() >= 0 and many.max() < 2**32
    assert len(many.unique()) == many.numel()
    for i in range(3):
        for t in range(3):
            assert torch.equal(words(seeds[i : i + 1], 0, steps[t : t + 1], 3)[0, 0], many[i, t, :3])
    assert not (words(seeds, 1, steps, 11) == many).any()


@pytest.mark.parametrize("samples", [1, 2, 10, 1000])
def test_batch_indices_are_uniform(samples: int):
    indices = batch_indices(torch.arange(4), torch.arange(250), 100, samples)
    counts = indices.flatten().bincount(minlength=samples)
    expected = indices.numel() / samples
    assert len(counts) == samples
    assert (counts - expected).abs().max() < 5 * expected**0.5  # 5 standard deviations


def test_the_largest_data_set():
    indices = batch_indices(torch.arange(100), torch.arange(10), 64, MAX_SAMPLES)
    assert indices.min() >= 0
    assert 0.999 * MAX_SAMPLES < indices.max() < MAX_SAMPLES


@pytest.mark.native
@pytest.mark.parametrize("seed", [0, 1, -3, 2**40 + 5])
@pytest.mark.parametrize("samples", [1, 10_007, MAX_SAMPLES])
def test_same_bits_in_cpp(seed: int, samples: int):
    host = pytest.importorskip("fastspec._host")
    for counter, key, answer in KNOWN:
        assert tuple(host.philox4x32(counter, key)) == answer
    for first_step, batch_size in ((0, 16), (2**32 - 2, 7), (5, 1)):
        got = torch.from_numpy(host.batch_indices(seed, first_step, 5, batch_size, samples))
        steps = torch.arange(first_step, first_step + 5)
        assert torch.equal(got, batch_indices(torch.tensor([seed]), steps, batch_size, samples)[0])
