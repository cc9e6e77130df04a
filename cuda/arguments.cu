#include <algorithm>
#include <cstring>

#include "cuda/arguments.h"

namespace oneemb::gpu {
namespace {

// Below the 4 KiB that kernel parameters have on every GPU.
constexpr int kPieceBytes = 3584;

struct Piece {
  uint32_t words[kPieceBytes / sizeof(uint32_t)];
};

__global__ void UploadKernel(const __grid_constant__ Piece piece, uint32_t* to,
                             int num_words) {
  for (int i = threadIdx.x; i < num_words; i += blockDim.x) {
    to[i] = piece.words[i];
  }
}

Draws AllDraws(const InitializerConfig* configs, int64_t count) {
  const bool uniform =
      std::all_of(configs, configs + count, [](const InitializerConfig& c) {
        return c.kind == InitializerKind::kConstant ||
               c.kind == InitializerKind::kUniform;
      });
  return uniform ? Draws::kUniform : Draws::kAny;
}

}  // namespace

cudaError_t Upload(cudaStream_t stream, const void* from, int64_t bytes,
                   void* to) {
  for (int64_t done = 0; done < bytes; done += kPieceBytes) {
    const int64_t size = std::min<int64_t>(bytes - done, kPieceBytes);
    Piece piece{};
    std::memcpy(&piece, static_cast<const char*>(from) + done,
                static_cast<size_t>(size));
    UploadKernel<<<1, kBlockThreads, 0, stream>>>(
        piece, reinterpret_cast<uint32_t*>(static_cast<char*>(to) + done),
        static_cast<int>(size / int64_t{sizeof(uint32_t)}));
  }
  return cudaGetLastError();
}

void MeasureInitializerArgs(int64_t num_columns, int64_t num_tables,
                            Workspace* workspace) {
  workspace->Take<int32_t>(num_columns);
  workspace->Take<InitializerConfig>(num_columns * num_tables);
}

cudaError_t MakeInitializerArgs(cudaStream_t stream,
                                const RowInitializers& rows, int32_t num_tables,
                                Workspace* workspace, InitializerArgs* args) {
  const int64_t columns = rows.num_columns;
  const int64_t configs = columns * num_tables;
  int32_t* const ends_space = workspace->Take<int32_t>(columns);
  auto* const configs_space = workspace->Take<InitializerConfig>(configs);
  args->rows = rows;
  args->rows.column_ends = nullptr;
  args->rows.configs = nullptr;
  args->draws = AllDraws(rows.configs, configs);
  if (columns <= InitializerArgs::kInlineEnds) {
    std::copy_n(rows.column_ends, columns, args->column_ends);
  } else {
    args->rows.column_ends = ends_space;
    ONEEMB_RETURN_IF_CUDA_ERROR(Upload(stream, rows.column_ends,
                                       columns * int64_t{sizeof(int32_t)},
                                       ends_space));
  }
  if (configs <= InitializerArgs::kInlineConfigs) {
    std::copy_n(rows.configs, configs, args->configs);
  } else {
    args->rows.configs = configs_space;
    ONEEMB_RETURN_IF_CUDA_ERROR(
        Upload(stream, rows.configs,
               configs * int64_t{sizeof(InitializerConfig)}, configs_space));
  }
  return cudaSuccess;
}

void MeasureFlatBatch(int64_t num_batches, Workspace* workspace) {
  workspace->Take<PlacedBatch>(num_batches);
}

cudaError_t MakeFlatBatch(cudaStream_t stream,
                          const std::vector<UpdateBatch>& batches,
                          Workspace* workspace, FlatBatch* flat) {
  const int64_t count = static_cast<int64_t>(batches.size());
  auto* const space = workspace->Take<PlacedBatch>(count);
  std::vector<PlacedBatch> placed;
  placed.reserve(batches.size());
  flat->size = 0;
  for (const UpdateBatch& batch : batches) {
    placed.push_back({batch, flat->size});
    flat->size += batch.ids.size;
  }
  flat->count = static_cast<int32_t>(count);
  flat->placed = nullptr;
  if (count <= FlatBatch::kInline) {
    std::copy_n(placed.data(), count, flat->first);
    return cudaSuccess;
  }
  flat->placed = space;
  return Upload(stream, placed.data(), count * int64_t{sizeof(PlacedBatch)},
                space);
}

}  // namespace oneemb::gpu
