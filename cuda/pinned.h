// Host memory that a GPU reads and writes by itself.
#pragma once

#include "store/buffer_source.h"

namespace oneemb::gpu {

// On huge pages: with small ones it is the translation of addresses that limits
// a GPU that gathers rows from there. Pinning memory takes long, so all of it
// is kept for the next buffer of its size, until the process ends. A kernel may
// use the address that the host uses. Called by threads that may wait for CUDA.
BufferSource* PinnedBuffers();

}  // namespace oneemb::gpu
