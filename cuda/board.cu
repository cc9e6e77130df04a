#include "cuda/board.h"

namespace oneemb::gpu {
namespace {

__global__ void WriteBoardKernel(const __grid_constant__ BoardPlaces from,
                                 volatile Board* board) {
  const unsigned thread = threadIdx.x;
  if (thread < kNumCounters) board->counters[thread] = from.counters[thread];
  if (thread != kNumCounters) return;
  board->nonce = from.nonce[0] | (uint64_t{from.nonce[1]} << 32);
  board->generation = *from.generation;
  board->verdict = 0;
  if (from.apply != nullptr) board->apply = *from.apply ? 1 : 0;
  if (from.place != nullptr) {
    const PlaceState& place = *from.place;
    board->active = place.active;
    board->damaged = place.checksum != 0 || place.outside != 0 ? 1 : 0;
    // As on the CPU, which looks no further where a lookup lacked rows.
    board->unstaged =
        place.was_missing != 0 ? place.was_missing : place.unstaged;
  }
  if (from.looked_up != nullptr) {
    board->unstaged = from.looked_up->unstaged;
    board->stale = from.looked_up->stale;
  }
}

__global__ void ReadBoardKernel(const __grid_constant__ BoardPlaces to,
                                bool table, const volatile Board* board) {
  const unsigned thread = threadIdx.x;
  if (thread < kNumCounters && table) {
    to.counters[thread] = board->counters[thread];
  }
  if (thread != kNumCounters) return;
  const bool verdict = board->verdict != 0;
  if (table) *to.generation = board->generation;
  if (to.verdict != nullptr) *to.verdict = verdict;
  if (to.place != nullptr && !verdict) to.place->active = 0;
  if (to.lookup != nullptr) *to.lookup = {verdict ? 0U : 1U, 0U};
}

constexpr unsigned kThreads = 32;
static_assert(kNumCounters < kThreads, "one thread more writes the rest");

}  // namespace

cudaError_t WriteBoard(cudaStream_t stream, const BoardPlaces& places,
                       Board* board) {
  WriteBoardKernel<<<1, kThreads, 0, stream>>>(places, board);
  return cudaGetLastError();
}

cudaError_t ReadBoard(cudaStream_t stream, const BoardPlaces& places,
                      bool table, const Board* board) {
  ReadBoardKernel<<<1, kThreads, 0, stream>>>(places, table, board);
  return cudaGetLastError();
}

}  // namespace oneemb::gpu
