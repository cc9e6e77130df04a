"""Large, growing embedding tables for JAX, keyed by 64-bit ids."""

from oneemb_jax._ffi import keep_freed_memory as keep_freed_memory
from oneemb_jax._version import __version__ as __version__
from oneemb_jax.cached_options import (
    make_cached_host_mem_store_options as make_cached_host_mem_store_options,
)
from oneemb_jax.cached_options import (
    make_cached_ssd_store_options as make_cached_ssd_store_options,
)
from oneemb_jax.counters import check as check
from oneemb_jax.counters import num_rows as num_rows
from oneemb_jax.counters import reset_counters as reset_counters
from oneemb_jax.counters import size as size
from oneemb_jax.counters import stats as stats
from oneemb_jax.embedding import MultiTableEmbedding as MultiTableEmbedding
from oneemb_jax.embedding import (
    MultiTableMultiColumnEmbedding as MultiTableMultiColumnEmbedding,
)
from oneemb_jax.grad import value_and_grad as value_and_grad
from oneemb_jax.host import Rows as Rows
from oneemb_jax.host import get_rows as get_rows
from oneemb_jax.host import grow as grow
from oneemb_jax.host import set_rows as set_rows
from oneemb_jax.ids import pack_ids as pack_ids
from oneemb_jax.ids import unpack_ids as unpack_ids
from oneemb_jax.initializers import Initializer as Initializer
from oneemb_jax.initializers import (
    make_constant_initializer as make_constant_initializer,
)
from oneemb_jax.initializers import make_normal_initializer as make_normal_initializer
from oneemb_jax.initializers import (
    make_trunc_normal_initializer as make_trunc_normal_initializer,
)
from oneemb_jax.initializers import make_uniform_initializer as make_uniform_initializer
from oneemb_jax.items import items as items
from oneemb_jax.lookup import LookupContext as LookupContext
from oneemb_jax.lookup import lookup as lookup
from oneemb_jax.optimizers import Optimizer as Optimizer
from oneemb_jax.optimizers import adagrad as adagrad
from oneemb_jax.optimizers import adam as adam
from oneemb_jax.optimizers import adamw as adamw
from oneemb_jax.optimizers import amsgrad as amsgrad
from oneemb_jax.optimizers import ftrl as ftrl
from oneemb_jax.optimizers import lamb as lamb
from oneemb_jax.optimizers import rowwise_adagrad as rowwise_adagrad
from oneemb_jax.optimizers import sgd as sgd
from oneemb_jax.optimizers import smart_decay_adam as smart_decay_adam
from oneemb_jax.options import make_column_options as make_column_options
from oneemb_jax.options import (
    make_device_mem_store_options as make_device_mem_store_options,
)
from oneemb_jax.options import make_table as make_table
from oneemb_jax.options import make_table_options as make_table_options
from oneemb_jax.persistent_table import (
    make_persistent_table_reader as make_persistent_table_reader,
)
from oneemb_jax.persistent_table import (
    make_persistent_table_writer as make_persistent_table_writer,
)
from oneemb_jax.restoring import restore as restore
from oneemb_jax.saving import save as save
from oneemb_jax.scheduler import PrefetchScheduler as PrefetchScheduler
from oneemb_jax.snapshot import save_snapshot as save_snapshot
from oneemb_jax.sparse_grad import SparseGrad as SparseGrad
from oneemb_jax.spec import TableSpec as TableSpec
from oneemb_jax.table import Table as Table
from oneemb_jax.table import TableError as TableError
from oneemb_jax.table import is_table as is_table
from oneemb_jax.tiers import flush as flush
from oneemb_jax.tiers import prefetch as prefetch
from oneemb_jax.tiers import stage as stage
from oneemb_jax.update import global_norm as global_norm
from oneemb_jax.update import update as update

__all__ = [
    "Initializer",
    "LookupContext",
    "MultiTableEmbedding",
    "MultiTableMultiColumnEmbedding",
    "Optimizer",
    "PrefetchScheduler",
    "Rows",
    "SparseGrad",
    "Table",
    "TableError",
    "TableSpec",
    "adagrad",
    "adam",
    "adamw",
    "amsgrad",
    "check",
    "flush",
    "ftrl",
    "get_rows",
    "global_norm",
    "grow",
    "is_table",
    "items",
    "keep_freed_memory",
    "lamb",
    "lookup",
    "make_cached_host_mem_store_options",
    "make_cached_ssd_store_options",
    "make_column_options",
    "make_constant_initializer",
    "make_device_mem_store_options",
    "make_normal_initializer",
    "make_persistent_table_reader",
    "make_persistent_table_writer",
    "make_table",
    "make_table_options",
    "make_trunc_normal_initializer",
    "make_uniform_initializer",
    "num_rows",
    "pack_ids",
    "prefetch",
    "reset_counters",
    "restore",
    "rowwise_adagrad",
    "save",
    "save_snapshot",
    "set_rows",
    "sgd",
    "size",
    "smart_decay_adam",
    "stage",
    "stats",
    "unpack_ids",
    "update",
    "value_and_grad",
]
