"""The vLLM engine's tests run where vLLM is installed: `make test-vllm` installs its CPU build first."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest

from tests.trainer.conftest import _one_thread, random_model  # noqa: F401  # fixtures
from trainer.policy import Policy, load_policy
from trainer.sampling.vllm_engine import VllmEngine, installed_version
from trainer.schema.engine import VllmEngineChoice

KV_MEMORY_MIB = 16  # of the tiny reasoner 21,845 tokens


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if installed_version() is None:
        skip = pytest.mark.skip(reason="vLLM is not installed here; make test-vllm installs its CPU build")
        for item in items:
            if "tests/vllm/" in item.nodeid:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def policy() -> Policy:
    """A tiny reasoner of these tests' own, with tied embeddings. Who changes its weights puts them back."""
    return load_policy("tiny-reasoner")


@pytest.fixture(scope="module")
def module_engine(policy: Policy) -> Iterator[VllmEngine]:
    # One per module: there is one at a time in a process.
    engine = VllmEngine(policy, VllmEngineChoice(kv_memory_mib=KV_MEMORY_MIB), label="tests")
    yield engine
    engine.close()


@pytest.fixture
def engine(module_engine: VllmEngine, policy: Policy) -> Iterator[VllmEngine]:
    """The engine; policy and engine have their own weights again afterwards."""
    before = copy.deepcopy(policy.model.state_dict())
    yield module_engine
    policy.model.load_state_dict(before)
    policy.value_head = None
    module_engine.sync()
