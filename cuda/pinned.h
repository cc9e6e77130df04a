// Host memory that a GPU reads and writes by itself.
#pragma once

#include "store/buffer_source.h"

namespace oneemb::gpu {

// On huge pages: with small ones it is the translation of addresses that limits
// a GPU that gathers rows from there. A kernel may use the address that the
// host uses. Take is for threads that may wait for CUDA and use a device,
// Return for any.
BufferSource* PinnedBuffers();

}  // namespace oneemb::gpu
