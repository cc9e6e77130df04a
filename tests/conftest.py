import jax
import pytest
from hypothesis import settings

# Before the first use of a device: the tests of sharding want several.
jax.config.update("jax_num_cpu_devices", 4)

# The same examples in every run, and no database of failures beside the tests.
settings.register_profile(
    "oneemb",
    derandomize=True,
    deadline=None,  # the first example compiles
    max_examples=40,
    database=None,
    print_blob=True,
)
settings.load_profile("oneemb")


@pytest.fixture(autouse=True)
def strict_promotion(request: pytest.FixtureRequest):
    """The library relies on no implicit promotion, whatever its user allows."""
    if request.node.get_closest_marker("any_promotion"):
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if jax.default_backend() == "gpu":
        return
    no_gpu = pytest.mark.skip(reason="no CUDA device for JAX")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(no_gpu)
