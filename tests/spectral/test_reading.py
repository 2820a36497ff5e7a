"""Spectra are the same however they are computed, in the order asked for, and each only once."""

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from axolotl_alphalora.spectral import Cache, LiveWeights, read_spectra, reading, spectra
from helpers.checkpoints import shapes_of, written


def matrix(rows, columns, seed):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def weights():
    """Two kinds of shapes by turns, and a few of another dtype or shape among them."""
    sizes = [(12, 20), (30, 16), (12, 20), (20, 12), (30, 16), (12, 20), (12, 20), (40, 40)]
    made = {f"h.{i}.q": matrix(*size, i) for i, size in enumerate(sizes)}
    made["h.5.q"] = made["h.5.q"].bfloat16()
    made["h.6.q"] = made["h.6.q"].double()
    return made


WAYS = {
    "small": {},
    "large": {"_ONE_THREAD_UP_TO": 0},
    "small and large": {"_ONE_THREAD_UP_TO": 14},
    "batches": {"_compute_on_cpu": reading._compute_batches},
    "small batches": {"_compute_on_cpu": reading._compute_batches, "_STACK_ELEMENTS": 500},
}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    for name, value in WAYS[request.param].items():
        monkeypatch.setattr(reading, name, value)
    return request.param


@pytest.mark.parametrize("window", [None, (12, 12), (8, 4)])
def test_every_way_gives_the_spectra_of_the_weights_in_their_order(weights, tmp_path, way, window):
    seen = []
    names = ["h.4.q", *(name for name in weights if name != "h.4.q")]
    shapes = {name: tuple(weights[name].shape) for name in names}
    found = read_spectra(
        written(tmp_path, weights), shapes, window, device="cpu", progress=seen.append
    )
    assert list(found.values) == list(found.shapes) == list(found.fingerprints) == names
    assert sorted(seen) == sorted(names)
    assert found.window == window
    for name, weight in weights.items():
        expected = spectra(weight, window)
        assert found.shapes[name] == tuple(weight.shape)
        assert found.values[name].dtype == torch.float64
        torch.testing.assert_close(found.values[name], expected, rtol=1e-9, atol=1e-9)


BAD = {
    "nan": (lambda w: w.index_put_((torch.tensor(3), torch.tensor(4)), torch.tensor(torch.nan)), 1),
    "inf": (lambda w: w[2].fill_(torch.inf), 20),
    "-inf": (lambda w: w.fill_(-torch.inf), 240),
}


@pytest.mark.parametrize("window", [None, (8, 4)])
@pytest.mark.parametrize("bad", BAD)
def test_nan_and_infinity_are_named_with_tensor_and_file(weights, tmp_path, way, bad, window):
    spoil, number = BAD[bad]
    spoil(weights["h.2.q"])
    source = written(tmp_path, weights)
    with pytest.raises(ValueError) as caught:
        read_spectra(source, shapes_of(weights), window, device="cpu")
    file = tmp_path / "model.safetensors"
    assert f"tensor 'h.2.q.weight' of {file}: {number} of 240 entries" in str(caught.value)


def test_what_is_no_matrix_is_named_with_tensor_and_file(weights, tmp_path, way):
    weights["h.3.q"] = torch.ones(3, 4, 5)
    shapes = shapes_of(weights)
    with pytest.raises(ValueError, match=r"tensor 'h\.3\.q\.weight' of .*shape \(3, 4, 5\)"):
        read_spectra(written(tmp_path, weights), shapes, device="cpu")


def test_a_window_that_does_not_fit_is_named_with_the_tensor(weights, tmp_path, way):
    source = written(tmp_path, weights)
    with pytest.raises(ValueError, match=r"tensor 'h\.\d\.q\.weight' of .*: .*13"):
        read_spectra(source, shapes_of(weights), (13, 13), device="cpu")


def test_a_live_matrix_is_named_by_its_module():
    layer = nn.Linear(8, 8)
    layer.weight.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match="weight of live module '0': 1 of 64 entries"):
        read_spectra(LiveWeights(nn.Sequential(layer)), {"0": (8, 8)})


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("end", ["well", "in an error", "interrupted"])
def test_the_number_of_threads_is_afterwards_as_before(weights, tmp_path, way, end):
    if end == "in an error":
        weights["h.1.q"][0, 0] = torch.nan

    def stop(_):
        if end == "interrupted":
            raise KeyboardInterrupt

    try:
        read_spectra(written(tmp_path, weights), shapes_of(weights), device="cpu", progress=stop)
    except (ValueError, KeyboardInterrupt):
        assert end != "well"
    else:
        assert end == "well"
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3


@pytest.mark.usefixtures("three_threads")
def test_small_matrices_are_computed_side_by_side_on_one_thread_each(
    weights, tmp_path, monkeypatch
):
    seen = []

    def spy(weight, window):
        seen.append((threading.get_ident(), torch.get_num_threads()))
        return spectra(weight, window)

    monkeypatch.setattr(reading, "spectra", spy)
    read_spectra(written(tmp_path, weights), shapes_of(weights), device="cpu")
    assert {threads for _, threads in seen} == {1}
    assert threading.get_ident() not in {thread for thread, _ in seen}
    seen.clear()
    monkeypatch.setattr(reading, "_ONE_THREAD_UP_TO", 0)
    read_spectra(written(tmp_path, weights), shapes_of(weights), device="cpu")
    assert {threads for _, threads in seen} == {3}


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("way", ["small", "large", "small batches"], indirect=True)
def test_no_more_than_a_few_weights_are_in_memory_at_once(tmp_path, way):
    weights = {f"h.{i}.q": matrix(20, 20, i) for i in range(60)}
    source = written(tmp_path, weights)
    alive, most = set(), 0

    class Watched:
        def __getattr__(self, name):
            return getattr(source, name)

        def tensor(self, name):
            nonlocal most
            weight = source.tensor(name)
            alive.add(name)
            weakref.finalize(weight, alive.discard, name)
            most = max(most, len(alive))
            return weight

    read_spectra(Watched(), shapes_of(weights), device="cpu")
    assert 0 < most <= 12
    assert not alive


def forbid_computing(monkeypatch):
    def refuse(*_):
        raise AssertionError("computed")

    monkeypatch.setattr(reading, "spectra", refuse)
    monkeypatch.setattr(reading, "stacked_spectra", refuse)


def assert_equal(found, expected):
    assert found.shapes == expected.shapes
    assert found.fingerprints == expected.fingerprints
    assert found.digest == expected.digest
    assert list(found.values) == list(expected.values)
    for name, values in expected.values.items():
        assert torch.equal(found.values[name], values)


@pytest.mark.parametrize("window", [None, (8, 4)])
def test_spectra_are_computed_once_for_a_content(weights, tmp_path, monkeypatch, way, window):
    cache = Cache(tmp_path / "cache")
    shapes = shapes_of(weights)
    first = read_spectra(written(tmp_path, weights), shapes, window, cache=cache, device="cpu")
    plain = read_spectra(written(tmp_path, weights), shapes, window, device="cpu")
    assert_equal(plain, first)
    forbid_computing(monkeypatch)
    source = written(tmp_path, weights)
    for name in weights:
        source.identify(name, source.tensor(name))
    seen = []
    again = read_spectra(source, shapes, window, cache=cache, device="cpu", progress=seen.append)
    assert_equal(again, first)
    assert seen == list(shapes)


def test_another_window_is_another_spectrum(weights, tmp_path):
    cache, shapes = Cache(tmp_path / "cache"), shapes_of(weights)
    for window in (None, (12, 12), (8, 4), (4, 8)):
        source = written(tmp_path, weights)
        found = read_spectra(source, shapes, window, cache=cache, device="cpu")
        for name, weight in weights.items():
            expected = spectra(weight, window)
            torch.testing.assert_close(found.values[name], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("damage", ["cut off", "a byte flipped", "another format"])
def test_a_damaged_spectrum_is_computed_again_and_replaced(weights, tmp_path, monkeypatch, damage):
    cache, shapes = Cache(tmp_path / "cache"), shapes_of(weights)
    first = read_spectra(written(tmp_path, weights), shapes, cache=cache)
    entries = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(entries) == len(weights)
    whole = {path: path.read_bytes() for path in entries}
    for path, content in whole.items():
        middle = len(content) // 2
        path.write_bytes(
            {
                "cut off": content[:middle],
                "a byte flipped": content[:middle]
                + bytes([content[middle] ^ 4])
                + content[middle + 1 :],
                "another format": b"\0" + content,
            }[damage]
        )
    assert_equal(read_spectra(written(tmp_path, weights), shapes, cache=cache), first)
    assert {path: path.read_bytes() for path in entries} == whole


def test_an_unwritable_cache_changes_no_result(weights, tmp_path):
    (tmp_path / "file").touch()
    shapes = shapes_of(weights)
    expected = read_spectra(written(tmp_path, weights), shapes)
    with pytest.warns(UserWarning, match="kept in the cache") as caught:
        cache = Cache(tmp_path / "file" / "cache")
        found = read_spectra(written(tmp_path, weights), shapes, cache=cache)
    assert len(caught) == 1
    assert_equal(found, expected)


def test_the_digest_is_that_of_the_weights_and_their_names(weights, tmp_path):
    def digest(changed):
        return read_spectra(written(tmp_path, changed), shapes_of(changed)).digest

    first = digest(weights)
    assert digest(dict(reversed(weights.items()))) == first
    swapped = weights | {"h.0.q": weights["h.2.q"], "h.2.q": weights["h.0.q"]}
    fewer = {name: weights[name] for name in list(weights)[1:]}
    half = weights | {"h.0.q": weights["h.0.q"].half()}
    assert len({first, *map(digest, (swapped, fewer, half))}) == 4


def test_weights_in_memory_that_are_known_are_not_computed_again(tmp_path, way, monkeypatch):
    model = nn.ModuleList(nn.Linear(20, 24) for _ in range(3))
    shapes = {str(i): (24, 20) for i in range(3)}
    cache = Cache(tmp_path)
    first = read_spectra(LiveWeights(model), shapes, cache=cache)

    def computed(*_):
        raise AssertionError("a known spectrum was computed again")

    monkeypatch.setattr(reading, "spectra", computed)
    monkeypatch.setattr(reading, "stacked_spectra", computed)
    again = read_spectra(LiveWeights(model), shapes, cache=cache)
    for name in shapes:
        assert torch.equal(again.values[name], first.values[name])
