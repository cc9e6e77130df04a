#include "cuda/norm.h"
#include "cuda/row_update.cuh"
#include "cuda/sorted_batch.h"
#include "cuda/update_rows.h"

namespace oneemb::gpu {
namespace {

// The sink of a norm: the square of each row's sum, by number of the row. Rows
// are numbered by first occurrence.
class SquareSink {
 public:
  struct Args {
    float* squares;
  };
  using Shared = ColumnSumShared;
  static constexpr bool kIsStateless = false;

  __device__ SquareSink(const Args& args, const RowShape& shape, Shared* shared)
      : a_(args), shape_(shape), shared_(shared) {}

  __device__ void Prefetch(uint32_t /*slot*/, int /*column*/) const {}

  template <int kWidth, class Gradient>
  __device__ void Row(uint32_t slot, const LaneGroup& group,
                      const Gradient& gradient) {
    ColumnSums<1, kWidth> sums(shared_, group);
    for (int tile = 0; tile < shape_.dim; tile += group.lanes * kWidth) {
      float terms[1][kWidth] = {};
      const int c = tile + group.lane * kWidth;
      if (c < shape_.dim) {
        const Columns<kWidth> g = gradient(c);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) terms[0][i] = g.v[i] * g.v[i];
      }
      sums.Add(tile, shape_.dim, terms);
    }
    const float total = sums.Total(0);
    group.Sync();
    if (group.lane == 0) a_.squares[slot] = total;
  }

 private:
  const Args& a_;
  const RowShape& shape_;
  Shared* shared_;
};

// One level of the tree over rows: a thread adds a block of 32 terms.
__global__ __launch_bounds__(kBlockThreads) void AddBlocksKernel(
    const float* terms, float* sums, const PlaceState* state,
    int64_t terms_per_row_bits) {
  const int64_t rows = static_cast<int64_t>(state->num_new);
  const int64_t count = CeilDiv(rows, int64_t{1} << terms_per_row_bits);
  const int64_t i = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  const int64_t begin = i * kSumBlock;
  if (begin >= count) return;
  const int64_t end = begin + kSumBlock < count ? begin + kSumBlock : count;
  float sum = terms[begin];
  for (int64_t k = begin + 1; k < end; ++k) sum += terms[k];
  sums[i] = sum;
}

__global__ void RootKernel(const float* total, const PlaceState* state,
                           float* norm) {
  if (state->active == 0) {
    *norm = FloatFromBits(kFloatNaN);
    return;
  }
  *norm = state->num_new == 0 ? 0.0F : Sqrt(*total);
}

struct Space : SortedBatch {
  float* sums[2];
};

void TakeSpace(const TableRules& rules, int64_t n, Workspace* workspace,
               Space* space) {
  TakeSortedBatch(rules, n, n, workspace, space);
  space->sums[0] = workspace->Take<float>(n);
  space->sums[1] = workspace->Take<float>(CeilDiv(n, kSumBlock));
}

// Adds up the squares in sums[0].
cudaError_t AddSquares(cudaStream_t stream, const Space& space, int64_t n,
                       float* norm) {
  int level = 0;
  int from = 0;
  for (int64_t terms = n; terms > 1; terms = CeilDiv(terms, kSumBlock)) {
    const int64_t sums = CeilDiv(terms, kSumBlock);
    AddBlocksKernel<<<NumBlocks(sums, kBlockThreads), kBlockThreads, 0,
                      stream>>>(space.sums[from], space.sums[1 - from],
                                space.place.state, 5 * level);
    ONEEMB_RETURN_IF_CUDA_ERROR(cudaGetLastError());
    from = 1 - from;
    ++level;
  }
  RootKernel<<<1, 1, 0, stream>>>(space.sums[from], space.place.state, norm);
  return cudaGetLastError();
}

}  // namespace

int64_t NormSpace(const TableRules& rules, int64_t n, int64_t num_batches) {
  Workspace workspace;
  Space space{};
  TakeSpace(rules, n, &workspace, &space);
  MeasureFlatBatch(num_batches, &workspace);
  return workspace.used();
}

cudaError_t GlobalNorm(cudaStream_t stream, const TableRules& rules,
                       const std::vector<UpdateBatch>& batches, FloatType type,
                       float* norm, void* workspace_base) {
  int64_t n = 0;
  for (const UpdateBatch& batch : batches) n += batch.ids.size;
  Workspace workspace(workspace_base);
  Space space{};
  TakeSpace(rules, n, &workspace, &space);
  space.place.mode = PlaceMode::kNumber;
  space.place.keys = rules.keys;
  space.place.embedding_dim = rules.embedding_dim;
  ONEEMB_RETURN_IF_CUDA_ERROR(
      MakeFlatBatch(stream, batches, &workspace, &space.place.batch));
  ONEEMB_RETURN_IF_CUDA_ERROR(
      Place(stream, space.place, {workspace_base, space.zero_bytes}));
  ONEEMB_RETURN_IF_CUDA_ERROR(SortBatch(stream, rules, n, &space));
  const SquareSink::Args sink{space.sums[0]};
  ONEEMB_RETURN_IF_CUDA_ERROR(DispatchAccess(type, [&](auto access) {
    return LaunchReduce<SquareSink, decltype(access)>(
        stream, space.reduce, sink, RowWidth(space.reduce.shape.dim));
  }));
  return AddSquares(stream, space, n, norm);
}

}  // namespace oneemb::gpu
