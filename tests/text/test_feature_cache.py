import copy
import pickle

from grounding_dino.text.feature_cache import FeatureCache

import pytest
import torch


def test_least_recently_used_goes_first():
    cache = FeatureCache(2)
    for key in ("a", "b"):
        cache.put(key, torch.zeros(1))
    assert cache.get("a") is not None
    cache.put("c", torch.zeros(1))
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert len(cache) == 2


def test_size_zero_keeps_nothing():
    cache = FeatureCache(0)
    cache.put("a", torch.zeros(1))
    assert len(cache) == 0


def test_copies_start_empty():
    cache = FeatureCache(3)
    cache.put("a", torch.zeros(1))
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert (len(other), other.size) == (0, 3)
    cache.clear()
    assert len(cache) == 0


def test_negative_size_is_refused():
    with pytest.raises(ValueError, match="the cache size -1 is negative"):
        FeatureCache(-1)
