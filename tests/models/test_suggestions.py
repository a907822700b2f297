"""Models that are offered instead of the embedded one."""

import subprocess
import sys
from pathlib import Path

import pytest

from llmsvc.models.catalogue import SMOLLM2, Catalogue
from llmsvc.models.suggestions import suggest

GB = 10**9


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("gigabytes", [4, 8, 16, 24, 48, 80, 141, 1000])
def test_three_that_fit_the_best_first(gigabytes: int, gpu: bool) -> None:
    offered = suggest(gigabytes * GB, gpu)
    sizes = [model.bytes for model in offered]
    assert len({model.id for model in offered}) == 3
    assert sizes == sorted(sizes, reverse=True)
    assert all(SMOLLM2.bytes < size < gigabytes * GB for size in sizes)


def test_more_memory_never_offers_less() -> None:
    best = [max((m.bytes for m in suggest(gigabytes * GB, True)), default=0) for gigabytes in range(200)]
    assert best == sorted(best)
    assert best[0] == 0
    assert best[-1] > 50 * GB


def test_without_a_gpu_nothing_is_offered_that_would_crawl() -> None:
    assert suggest(1000 * GB, False)[0].bytes < 10 * GB < suggest(1000 * GB, True)[0].bytes


def test_a_machine_without_room_is_offered_nothing() -> None:
    assert suggest(GB, False) == []
    assert len(suggest(2 * GB, False)) == 1


def test_each_can_be_loaded_by_its_id_and_says_why(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    for model in {m for gigabytes in range(1, 200) for gpu in (False, True) for m in suggest(gigabytes * GB, gpu)}:
        assert catalogue.entry(model.id).repository == model.id
        assert 20 < len(model.why) < 90
        assert not model.why.endswith(".")


def test_asking_needs_neither_torch_nor_the_hub() -> None:
    code = "import sys; from llmsvc.models.suggestions import suggest; suggest(2**34, False); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "huggingface_hub"} & set(modules)
